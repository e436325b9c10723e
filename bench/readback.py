"""Reads each contender's store after it was killed: what it answered must be there.

A contender that answers before it has written, or writes less than it says, is found here and
not in a faster number.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bench import postgres
from bench.load import BadAnswer
from durable_endpoints import frames
from durable_endpoints.records import Entry, Kind

SAMPLED = 200  # runs whose every entry is decoded and looked at
Stored: TypeAlias = tuple[str, int, bytes]  # run id, seq of the first entry, a frame's bytes


@dataclass(frozen=True)
class Expected:
    """What was answered: `answers` of `kind` ("steps" or "chat") with `size` steps or tokens."""

    kind: str
    answers: int
    size: int
    run_ids: tuple[str, ...] = ()


def nothing(_: Path, __: Expected) -> dict[str, int]:
    """A contender that promises nothing has nothing to read back."""
    return {}


def require(found: int, wanted: int, what: str) -> None:
    """Raise BadAnswer if the store holds less than was answered."""
    if found < wanted:
        raise BadAnswer(f"{what}: {found} in the store after a kill, {wanted} were answered")


def commit_per_step(directory: Path, expected: Expected) -> dict[str, int]:
    """Count the runs and steps of the hand-written app."""
    with closing(sqlite3.connect(directory / "steps.db")) as db:
        runs = db.execute("select count(*) from runs where response is not null").fetchone()[0]
        sql = "select run, count(*) from steps group by run having count(*) >= ?"
        whole = len(db.execute(sql, (expected.size,)).fetchall())
    # The stream's end is written after its last event has left.
    slack = 32 if expected.kind == "chat" else 0
    require(runs + slack, expected.answers, "finished runs")
    require(whole, expected.answers, f"runs with all {expected.size} steps")
    return {"runs": runs, "whole": whole}


def durable(directory: Path, expected: Expected) -> dict[str, int]:
    """Count runs and entries of our journal, and look into a sample of them."""
    with closing(sqlite3.connect(directory / "durable.db")) as db:
        rows = db.execute("select run_id, last_seq, status, no from runs").fetchall()
        numbers = {run: number for run, _, _, number in rows}

        def frames_of(runs: list[str]) -> Iterator[Stored]:
            for run in runs:
                low = numbers[run] << 20
                sql = "select id, data from frames where id between ? and ? order by id"
                for no, data in db.execute(sql, (low, low + (1 << 20) - 1)):
                    yield run, no - low, data

        stored = {run: (last, status) for run, last, status, _ in rows}
        return _durable(stored, frames_of, expected)


def durable_postgres(directory: Path, expected: Expected) -> dict[str, int]:
    """Do the same with our journal on PostgreSQL, whose server was killed too."""
    with postgres.running(directory) as url:
        return durable_in(url, "durable", expected)


def durable_in(url: str, schema: str, expected: Expected) -> dict[str, int]:
    """Do the same in a schema of a PostgreSQL server that is running."""

    def frames_of(runs: list[str]) -> Iterator[Stored]:
        named = ", ".join(f"'{run}'" for run in runs)
        sql = (f"select run_id, first_seq, encode(data, 'hex') from {schema}.frames"
               f" where run_id in ({named}) order by run_id, first_seq")  # fmt: skip
        for run, seq, data in postgres.ask(url, sql):
            yield run, int(seq), bytes.fromhex(data)

    rows = postgres.ask(url, f"select run_id, last_seq, status from {schema}.runs")
    stored = {run: (int(last), status) for run, last, status in rows}
    return _durable(stored, frames_of, expected)


def _durable(
    stored: dict[str, tuple[int, str]], frames_of: Callable[[list[str]], Iterator[Stored]],
    expected: Expected,
) -> dict[str, int]:  # fmt: skip
    wanted = set(expected.run_ids)
    require(len(wanted), expected.answers, "distinct run ids on the answers")
    require(len(wanted & stored.keys()), len(wanted), "answered runs")
    short = sum(1 for run in wanted if stored[run][0] + 1 < expected.size)
    require(-short, 0, "runs with all their entries")
    sampled = random.Random(0).sample(sorted(wanted), min(SAMPLED, len(wanted)))
    entries: dict[str, list[Entry]] = {run: [] for run in sampled}
    for run, seq, data in frames_of(sampled):
        entries[run] += frames.unpack(data, seq)
    for run, found in entries.items():
        _look_into(run, found, expected)
    # The entry that ends the run may follow the last byte of the answer.
    statuses = Counter(stored[run][1] for run in wanted)
    require(statuses["completed"] + 64, len(wanted), "completed runs")
    return {
        "runs": len(wanted),
        "completed": statuses["completed"],
        "entries": sum(stored[run][0] + 1 for run in wanted),
        "sampled": len(sampled),
    }


def _look_into(run: str, entries: list[Entry], expected: Expected) -> None:
    found: Counter[Kind] = Counter()
    body = b""
    for entry in entries:
        found[entry.kind] += 1
        if entry.kind is Kind.CHUNK:
            body += entry.payload
    step = Kind.STEP if expected.kind == "steps" else Kind.ITEM
    require(found[step], expected.size, f"run {run}: recorded {step.name} entries")
    require(found[Kind.STARTED], 1, f"run {run}: STARTED")
    require(found[Kind.BODY_END], 1, f"run {run}: BODY_END")
    if expected.kind == "steps":
        require(json.loads(body)["steps"], expected.size, f"run {run}: the response's body")
    else:
        require(body.count(b"token"), expected.size, f"run {run}: events in the journal")
