"""Judges what the clients of a killed server saw against what its journal holds in the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from durable_endpoints.testing import Reader, Transcript, Violation, compare
from tests.crash.evidence import (
    AtKill,
    Stored,
    check_body,
    check_executions,
    check_journal,
    marks,
    read_executions,
)
from tests.crash.workload import Story

STANDSTILL: Final = frozenset({"completed", "failed", "cancelled", "dead", "diverged"})
END_S = 30.0


@dataclass
class Report:
    """What a number of crashes have shown."""

    seed: int
    kills: int = 0
    early_kills: int = 0  # before the server was ready
    runs: int = 0
    interrupted: int = 0  # runs that a kill met unfinished, counted once for each kill
    transcripts: int = 0
    events: int = 0
    reconnects: int = 0
    rewinds: int = 0
    restarts: int = 0  # readers told to begin anew, because what they had was taken back
    executions: int = 0
    again: int = 0  # executions beyond the first, of results that were not durable
    took_s: float = 0.0
    missed: list[str] = field(default_factory=list)  # crash points that did not come up
    statuses: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)  # see tests/support/sometimes.py
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take another report's figures in."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter | list):
                mine += value
            elif name != "seed":
                setattr(self, name, mine + value)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.kills} kills ({self.early_kills} before the server was "
            f"ready) in {self.took_s:.0f} s",
            f"{self.runs} runs, {self.interrupted} times met unfinished; {dict(self.statuses)}",
            f"{self.transcripts} transcripts, {self.events} events, {self.reconnects} reconnects, "
            f"{self.rewinds} rewinds, {self.restarts} readers told to begin anew",
            f"{self.executions} executions, {self.again} again (their results were not durable)",
            f"{dict(sorted(self.paths.items()))}",
            f"{len(self.violations)} violations",
        ]
        if self.missed:
            lines.append(f"crash points that did not come up: {', '.join(self.missed)}")
        return "\n".join(lines + [f"  {violation}" for violation in self.violations[:40]])


class Logs(NamedTuple):
    """A run's log, read from the start after its end: with control events, and without."""

    full: Transcript
    plain: Transcript


def check_published(
    stories: Iterable[Story], stored: Mapping[str, Stored], seen_before: dict[int, int]
) -> list[Violation]:
    """Return what clients had seen at a kill and the killed server's journal does not hold (I1).

    `seen_before` remembers how far each transcript was checked at the kill before.
    """
    found = []
    for transcript in [t for story in stories for t in story.transcripts if t.run_id]:
        run_id = str(transcript.run_id)
        if run_id not in stored:
            found.append(Violation("I7", run_id, f"{transcript.reader} knew it, no row holds it"))
            continue
        begin = seen_before.get(id(transcript), 0)
        if begin >= len(transcript.seen):
            continue
        known = dict(marks(stored[run_id]))
        found += [
            Violation("I1", run_id, f"{transcript.reader} had {item} at the kill")
            for item in transcript.seen[begin:]
            if item.offset is not None and known.get(item.offset) != item.mark
        ]
        seen_before[id(transcript)] = len(transcript.seen)
    return found


async def read_logs(url: str, stories: Iterable[Story], report: Report) -> dict[str, Logs]:
    """Read every run from the start, once it has come to a standstill."""
    found = {}
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        for run_id in [story.run_id for story in stories if story.run_id]:
            status, error = await _standstill(http, run_id)
            report.statuses[f"{status}: {error}" if error else status] += 1
            full = Transcript("the log", control=True, run_id=run_id)
            plain = Transcript("the log without rewinds", control=False, run_id=run_id)
            if status not in STANDSTILL or status == "diverged":
                full.blame("I16", f"the run is {status}: {error}")
            else:
                for transcript in (full, plain):
                    await _read(http, transcript)
            found[run_id] = Logs(full, plain)
    return found


async def _read(http: httpx.AsyncClient, transcript: Transcript) -> None:
    reader = Reader(http, transcript, chance=random.Random(0))
    try:
        await asyncio.wait_for(reader.follow(), END_S)
    except TimeoutError:
        transcript.blame("I16", "the end does not come")


async def _standstill(http: httpx.AsyncClient, run_id: str) -> tuple[str, str | None]:
    deadline = time.monotonic() + END_S
    while True:
        answer = await http.get(f"/_durable/runs/{run_id}")
        told = answer.json()
        status = str(told["status"]) if answer.status_code == 200 else f"HTTP {answer.status_code}"
        if status in STANDSTILL or status.startswith("HTTP") or time.monotonic() > deadline:
            return status, told.get("error")
        await asyncio.sleep(0.05)


def judge(
    directory: Path, stored: Mapping[str, Stored], stories: list[Story],
    logs: Mapping[str, Logs], evidence: list[AtKill], report: Report,
) -> None:  # fmt: skip
    """Compare everything with everything, into `report`."""
    blame = report.violations.append
    executed: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for done in read_executions(directory):
        executed[done.run_id][done.label].add(done.nonce)
        report.executions += 1
    report.again += sum(len(n) - 1 for labels in executed.values() for n in labels.values())
    report.runs += len(stored)
    report.interrupted += sum(len(kill.unfinished) for kill in evidence)
    report.violations += check_executions(directory, evidence)
    told = {run_id for story in stories for run_id in story.told()}
    children = {run.run_id for run in stored.values() if run.name.endswith(":helper")}
    for run_id in stored.keys() - told - children:
        blame(Violation("I7", run_id, "no client was told of this run: a key made two"))
    for run in stored.values():
        report.violations += check_journal(run, executed[run.run_id])
        if run.status != "completed":
            last = run.entries[-1].payload.decode(errors="replace") if run.entries else "no entry"
            blame(Violation("I16", run.run_id, f"{run.name} is {run.status}: {last[:200]}"))
    for story in stories:
        _judge_story(story, stored, logs, report)


def _judge_story(
    story: Story, stored: Mapping[str, Stored], logs: Mapping[str, Logs], report: Report
) -> None:
    for transcript in story.transcripts:
        report.transcripts += 1
        report.events += len(transcript.seen)
        report.reconnects += max(0, transcript.connections - 1)
        report.met["a reader leaves and comes back"] += max(0, transcript.connections - 1)
        report.restarts += transcript.restarts
        report.violations += transcript.violations
    run_id = story.run_id
    blame = lambda invariant, detail: report.violations.append(  # noqa: E731
        Violation(invariant, str(run_id), f"{story.path}: {detail}")
    )
    for refusal in story.refusals:
        blame("HTTP", refusal)
    if run_id is None or run_id not in logs or run_id not in stored:
        blame("I7", f"its clients know of {sorted(story.told())}")
        return
    log, plain = logs[run_id]
    report.violations += log.violations + plain.violations
    if log.violations:
        return
    rewinds = sum(item.event == "durable.rewind" for item in log.seen)
    report.rewinds += rewinds
    report.met["a reader is rewound"] += rewinds
    for transcript in (plain, *story.transcripts):
        report.violations += compare(transcript, log)
    run = stored[run_id]
    known = dict(marks(run))
    for item in log.seen:
        if item.offset is not None and known.get(item.offset) != item.mark:
            blame("I4", f"{item} is not the journal's {known.get(item.offset)}")
    shown = b"\n".join(item.data.encode() for item in log.standing())
    for whole in (shown, *story.bodies):
        report.violations += check_body(run, whole)
    for part in story.parts:
        if story.bodies and not story.bodies[0].startswith(part):
            blame("I5", "a cut answer is no beginning of the whole one")
