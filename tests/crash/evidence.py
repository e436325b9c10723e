"""What is left when a server has been killed: the journal's files, and the executions counted.

The journal is read from a copy of the files, so that looking changes nothing for the restart.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from durable_endpoints.frames import unpack
from durable_endpoints.records import EVENT_KINDS, TERMINAL_KINDS, Entry, Kind
from durable_endpoints.testing import Violation

DATABASE = "durable.db"
EXECUTIONS = "executions.log"
EFFECTS = "effects.log"
_NONCE = re.compile(rb"(?<![-0-9a-f])[0-9a-f]{12}(?![0-9a-f])")
_STATUS_OF = {Kind.COMPLETED: "completed", Kind.FAILED: "failed", Kind.CANCELLED: "cancelled"}


class Execution(NamedTuple):
    """One execution of a step, as it counted itself."""

    run_id: str
    label: str
    nonce: str
    at: int  # bytes of the log before it


@dataclass
class Stored:
    """One run as its files have it."""

    run_id: str
    name: str
    status: str
    attempts: int
    entries: list[Entry] = field(default_factory=list)

    def final_labels(self) -> set[str]:
        """Return the steps and items whose results are final: they must never run again (I2)."""
        labels: set[str] = set()
        streams: dict[str, list[str]] = defaultdict(list)
        policies: dict[str, str] = {}
        for entry in self.entries:
            if entry.kind == Kind.STEP:
                labels |= labels_of(entry)
            elif entry.kind == Kind.STREAM:
                policies[entry.key] = entry.payload.decode()
            elif entry.kind == Kind.RESET:
                streams[entry.key].clear()
            elif entry.kind == Kind.ITEM:
                streams[entry.key] += labels_of(entry)
                if policies.get(entry.key) == "resume":
                    labels |= labels_of(entry)
            elif entry.kind in (Kind.STREAM_END, Kind.STEP_FAILED):
                labels |= set(streams[entry.key])
        return labels

    def results(self) -> dict[str, list[str]]:
        """Return the recorded nonces of every label, in order, void ones too."""
        found: dict[str, list[str]] = defaultdict(list)
        for entry in self.entries:
            if entry.kind in (Kind.STEP, Kind.ITEM):
                for label in labels_of(entry):
                    found[label].append(json.loads(entry.payload)["nonce"])
        return found

    def heard(self) -> set[str]:
        """Return the nonces that came from other runs, as the results of children."""
        return {nonce.decode() for entry in self.entries if entry.kind == Kind.RECEIVED
                for nonce in _NONCE.findall(entry.payload)}  # fmt: skip

    def intended(self) -> set[str]:
        """Return the labels of the effects and compensations that were to begin."""
        found = set()
        for entry in self.entries:
            if entry.kind == Kind.INTENT:
                label = json.loads(entry.args)[0]
                found.add(f"undo-{label}" if entry.key.startswith("undo/") else label)
        return found

    def paths(self) -> set[str]:
        """Return the ways of recovery that were taken, as tests/support/sometimes.py has them."""
        kinds = {entry.kind for entry in self.entries}
        ends = [entry.payload for entry in self.entries if entry.kind == Kind.STREAM_END]
        cut = [entry for entry in self.entries if entry.kind == Kind.STEP_FAILED
               and b"StreamInterrupted" in entry.payload]  # fmt: skip
        found = {f"a run is {self.status}"}
        found |= {"a stream begins anew"} if Kind.RESET in kinds else set()
        found |= {"a stream is finalized"} if b"truncated" in ends else set()
        found |= {"a handler is told of an interruption"} if cut else set()
        return found


def labels_of(entry: Entry) -> set[str]:
    made = json.loads(entry.payload or b"null")
    return {made["label"]} if isinstance(made, dict) and "label" in made else set()


def read_store(database: Path) -> dict[str, Stored]:
    """Return every run of a database that nobody has open."""
    with tempfile.TemporaryDirectory() as place:
        for suffix in ("", "-wal"):
            file = database.with_name(database.name + suffix)
            if file.exists():
                shutil.copy(file, Path(place) / file.name)
        with closing(sqlite3.connect(Path(place) / database.name)) as db:
            if not db.execute("select 1 from sqlite_master where name = 'runs'").fetchone():
                return {}
            return _read(db)


def _read(db: sqlite3.Connection) -> dict[str, Stored]:
    runs: dict[int, Stored] = {}
    for no, *row in db.execute("select no, run_id, name, status, attempts from runs"):
        runs[no] = Stored(*row)
    for number, data in db.execute("select id, data from frames order by id"):
        runs[number >> 20].entries += unpack(data, number & 0xFFFFF)
    return {run.run_id: run for run in runs.values()}


def read_executions(directory: Path, after: int = 0) -> list[Execution]:
    """Return the executions counted behind byte `after`."""
    path = directory / EXECUTIONS
    found, at = [], after
    with path.open("rb") as file:
        file.seek(after)
        for line in file:
            run_id, label, nonce, _ = line.decode().split(" ")
            found.append(Execution(run_id, label, nonce, at))
            at += len(line)
    return found


@dataclass
class AtKill:
    """What was final when the server was killed."""

    size: int  # of the executions' log
    final: dict[str, set[str]]
    unfinished: set[str]


def take_evidence(directory: Path, stored: Mapping[str, Stored]) -> AtKill:
    """Note what a killed server has left."""
    log = directory / EXECUTIONS
    return AtKill(
        log.stat().st_size if log.exists() else 0,
        {run.run_id: run.final_labels() for run in stored.values()},
        {run.run_id for run in stored.values() if run.status == "running"},
    )


def check_executions(directory: Path, kills: Iterable[AtKill]) -> list[Violation]:
    """Return the steps that ran again although their result was durable (I2)."""
    executions = read_executions(directory)
    return [
        Violation("I2", done.run_id, f"{done.label} ran again")
        for kill in kills
        for done in executions
        if done.at >= kill.size and done.label in kill.final.get(done.run_id, ())
    ]


def check_effects(directory: Path, stored: Mapping[str, Stored]) -> list[Violation]:
    """Return the effects that began before their intent was durable, or with two keys (I3).

    For a server that has just been killed.
    """
    found = []
    keys: dict[tuple[str, str], str] = {}
    log = directory / EFFECTS
    for line in log.read_text().splitlines() if log.exists() else ():
        run_id, label, key = line.split(" ")
        if keys.setdefault((run_id, label), key) != key:
            found.append(Violation("I3", run_id, f"effect {label} has two keys"))
        if run_id not in stored or label not in stored[run_id].intended():
            found.append(Violation("I3", run_id, f"effect {label} began, its intent is not there"))
    return found


def check_journal(run: Stored, executed: dict[str, set[str]]) -> list[Violation]:
    """Return what is wrong with a finished run's journal (I2, I4, I15)."""
    found = []
    blame = lambda invariant, detail: found.append(Violation(invariant, run.run_id, detail))  # noqa: E731
    if [entry.seq for entry in run.entries] != list(range(len(run.entries))):
        blame("I8", f"seqs are not dense: {[entry.seq for entry in run.entries]}")
    ends = [entry for entry in run.entries if entry.kind in TERMINAL_KINDS]
    if run.status in _STATUS_OF.values() and (
        len(ends) != 1 or ends[0] is not run.entries[-1] or _STATUS_OF[ends[0].kind] != run.status
    ):
        blame("I15", f"status {run.status}, terminal entries {[(e.seq, e.kind) for e in ends]}")
    steps = [entry for entry in run.entries if entry.kind == Kind.STEP]
    labels = [label for entry in steps for label in labels_of(entry)]
    for label in {label for label in labels if labels.count(label) > 1}:
        blame("I2", f"step {label} has {labels.count(label)} results")
    for label, nonces in run.results().items():
        for nonce in nonces:
            if nonce not in executed.get(label, ()):
                blame("I2", f"the result {nonce} of {label} was never made")
    return found


def check_body(run: Stored, body: bytes) -> list[Violation]:
    """Return the results in a body that are not in the journal, or not the last ones (I1, I2)."""
    known = {nonce for nonces in run.results().values() for nonce in nonces} | run.heard()
    strange = {nonce.decode() for nonce in _NONCE.findall(body)} - known
    return [Violation("I1", run.run_id, f"results shown, not recorded: {sorted(strange)}")] * bool(
        strange
    )


def marks(run: Stored) -> list[tuple[int, str]]:
    """Return (offset, rolling hash) of every event, computed anew from the journal."""
    crc, found = 0, []
    for entry in run.entries:
        if entry.kind in EVENT_KINDS:
            crc = crc32(entry.payload, crc)
            found.append((len(found), f"{crc:08x}"))
    return found
