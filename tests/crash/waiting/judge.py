"""Judges what was seen outside, by the sink and by the clients, against the journals."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from durable_endpoints.engine.attempts import key_of
from durable_endpoints.records import TERMINAL_KINDS, Kind
from durable_endpoints.testing import Violation
from tests.crash.evidence import Stored
from tests.crash.waiting.clients import Story
from tests.crash.waiting.sink import ATTEMPTS, Call, read_calls, receipt

_STATUS: Final = {
    Kind.COMPLETED: "completed", Kind.FAILED: "failed", Kind.CANCELLED: "cancelled",
}  # fmt: skip
_DONE: Final = (Kind.STEP, Kind.STEP_FAILED)
_PLAIN: Final = frozenset({"flaky", "odd"})  # steps: no intent goes before them
EXPECTED: Final = {
    "/gives_up": {"dead"}, "/saga": {"failed"}, "/saga?fails=false": {"cancelled"},
    "/parent?holds=true": {"cancelled"},
}  # fmt: skip


@dataclass
class AtKill:
    """What was true when the server was killed."""

    size: int  # of the sink's record
    done: dict[str, set[str]]  # run id -> keys whose outcome was durable
    unfinished: int


@dataclass
class Report:
    """What a number of kills have shown."""

    kills: int = 0
    runs: int = 0
    interrupted: int = 0
    signals: int = 0
    calls: int = 0
    again: int = 0  # calls beyond the first of a key that were not failures
    took_s: float = 0.0
    missed: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take another report's figures in."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter | list):
                mine += value
            else:
                setattr(self, name, mine + value)

    def __str__(self) -> str:
        lines = [
            f"{self.kills} kills; {self.runs} runs, {self.interrupted} times met unfinished; "
            f"{dict(self.statuses)}",
            f"{self.signals} signals; {self.calls} calls of the sink, {self.again} of them again, "
            "under their keys, after a crash",
            f"{len(self.violations)} violations",
        ]
        if self.missed:
            lines.append(f"points that did not come up: {', '.join(self.missed)}")
        return "\n".join(lines + [f"  {violation}" for violation in self.violations[:40]])


def keys_of(run: Stored, *kinds: Kind) -> set[str]:
    """Return the idempotency keys of a run's calls that have an entry of these kinds."""
    return {
        key_of(run.run_id, *entry.key.split(" ", 1)) for entry in run.entries if entry.kind in kinds
    }


def take_evidence(record: Path, stored: Mapping[str, Stored]) -> AtKill:
    """Note what a killed server has left."""
    size = record.stat().st_size if record.exists() else 0
    done = {run.run_id: keys_of(run, *_DONE) for run in stored.values()}
    unfinished = sum(run.status in ("running", "suspended") for run in stored.values())
    return AtKill(size, done, unfinished)


def check_intents(record: Path, stored: Mapping[str, Stored]) -> list[Violation]:
    """Return the effects that the sink knows and no durable intent says (I3)."""
    intended = {run.run_id: keys_of(run, Kind.INTENT) for run in stored.values()}
    found = []
    for call in read_calls(record):
        run_id = json.loads(call.payload)["run"]
        if call.what not in _PLAIN and call.key not in intended.get(run_id, ()):
            found.append(Violation("I3", run_id, f"{call.what} was called without an intent"))
    return found


def judge(
    record: Path, stored: Mapping[str, Stored], stories: Iterable[Story],
    evidence: Iterable[AtKill], report: Report,
) -> None:  # fmt: skip
    """Compare everything with everything, into `report`."""
    calls = read_calls(record)
    evidence = list(evidence)
    report.runs += len(stored)
    report.calls += len(calls)
    report.interrupted += sum(kill.unfinished for kill in evidence)
    report.violations += check_intents(record, stored)
    report.violations += _check_sink(record, calls, evidence, report)
    told = {story.run_id: story for story in stories}
    by_run: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_run[json.loads(call.payload)["run"]].append(call)
    for run in stored.values():
        report.statuses[run.status] += 1
        judged = _Judged(run, told.get(run.run_id), by_run[run.run_id], len(evidence))
        judged.judge()
        report.violations += judged.violations
    for story in told.values():
        report.signals += len(story.signals)
        for complaint in story.complaints:
            report.violations.append(Violation("HTTP", story.run_id, f"{story.path} {complaint}"))
        if story.run_id not in stored:
            report.violations.append(Violation("I7", story.run_id, "the run is gone"))


def _check_sink(
    record: Path, calls: list[Call], evidence: list[AtKill], report: Report
) -> list[Violation]:
    found = []
    payloads: dict[str, set[str]] = defaultdict(set)
    fine: Counter[str] = Counter()
    for call in calls:
        payloads[call.key].add(call.payload)
        fine[call.key] += call.status == 200
    report.again += sum(count - 1 for count in fine.values() if count > 1)
    for key, several in payloads.items():
        if len(several) > 1:
            found.append(Violation("I3", key, f"one key, several payloads: {several}"))
    for kill in evidence:
        done = set().union(*kill.done.values()) if kill.done else set()
        for call in read_calls(record, kill.size):
            if call.key in done:
                run_id = json.loads(call.payload)["run"]
                found.append(Violation("I2", run_id, f"{call.what} again; its outcome was durable"))
    return found


class _Judged:
    """One run before the judge."""

    def __init__(self, run: Stored, story: Story | None, calls: list[Call], kills: int) -> None:
        self.violations: list[Violation] = []
        self._run = run
        self._story = story
        self._calls = calls
        self._kills = kills

    def _blame(self, invariant: str, detail: str) -> None:
        path = self._story.path if self._story else "child"
        self.violations.append(Violation(invariant, self._run.run_id, f"{path}: {detail}"))

    def judge(self) -> None:
        self._journal()
        self._times()
        self._signals()
        self._budgets()
        self._undoing()
        if self._story is not None:
            self._ending(self._story)

    def _journal(self) -> None:
        run = self._run
        if [entry.seq for entry in run.entries] != list(range(len(run.entries))):
            self._blame("I8", "seqs are not dense")
        ends = [entry for entry in run.entries if entry.kind in TERMINAL_KINDS]
        over = run.status in _STATUS.values()
        if len(ends) != over or (
            ends and (ends[0] is not run.entries[-1] or _STATUS[ends[0].kind] != run.status)
        ):
            self._blame("I15", f"{run.status}, terminal entries {[(e.seq, e.kind) for e in ends]}")
        if not over and run.status != "dead":
            self._blame("I16", f"is {run.status}: {[e.kind.name for e in run.entries]}")
        once = Counter(
            entry.key for entry in run.entries
            if entry.kind in (Kind.STEP, Kind.RECEIVED, Kind.FIRED, Kind.SPAWN, Kind.UNDOABLE)
            and entry.kind != Kind.UNDOABLE
        )  # fmt: skip
        for key, count in once.items():
            if count > 1:
                self._blame("I2", f"{key} has {count} outcomes")

    def _times(self) -> None:
        until = {
            entry.key: json.loads(entry.payload)["until"]
            for entry in self._run.entries if entry.kind in (Kind.TIMER, Kind.WAIT)
        }  # fmt: skip
        for entry in self._run.entries:
            if entry.kind == Kind.FIRED and entry.at_ms < until[entry.key]:
                self._blame("I16", f"{entry.key} fired {until[entry.key] - entry.at_ms} ms early")

    def _signals(self) -> None:
        seqs: dict[int, str] = {}
        for entry in self._run.entries:
            if entry.kind == Kind.SIGNAL:
                seqs[entry.seq] = json.loads(entry.payload)["id"]
        counts = Counter(seqs.values())
        for sent in self._story.signals if self._story else ():
            count = counts[sent.ident]
            if sent.status in (200, 202) and count != 1:
                self._blame("I16", f"signal {sent.name} was taken, and is there {count} times")
            if sent.status == 409 and count:
                self._blame("I16", f"signal {sent.name} was refused, and is there")
        taken = [
            json.loads(entry.payload).get("signal")
            for entry in self._run.entries if entry.kind == Kind.RECEIVED
        ]  # fmt: skip
        given = [seq for seq in taken if seq is not None]
        if given != sorted(set(given)):
            self._blame("I16", f"signals were given in the order {given}")

    def _budgets(self) -> None:
        failed = Counter(e.key for e in self._run.entries if e.kind == Kind.ATTEMPT)
        for key, count in failed.items():
            if count >= ATTEMPTS:
                self._blame("budget", f"{key}: {count} failed attempts are followed by another")
        made = Counter((call.what, call.key) for call in self._calls)
        for (what, _), count in made.items():
            if what == "once" and count > 1:
                self._blame("I3", f"at most once, and {count} times")
            if count > ATTEMPTS + self._kills:
                self._blame("budget", f"{what}: {count} calls")

    def _undoing(self) -> None:
        entries = self._run.entries
        done = [e.key.partition(" ")[0] for e in entries if e.kind == Kind.UNDOABLE]
        undone = [
            e.key.partition(" ")[0].removeprefix("undo/")
            for e in entries if e.kind == Kind.STEP and e.key.startswith("undo/")
        ]  # fmt: skip
        called = [
            json.loads(call.payload)["label"] for call in self._calls if call.what == "unbook"
        ]
        if self._run.status in ("failed", "cancelled"):
            if undone != done[::-1]:
                self._blame("undo", f"done {done}, undone {undone}")
            if len(set(called)) != len(done):
                self._blame("undo", f"done {done}, the other side knows of {called}")
        elif called:
            self._blame("undo", f"{self._run.status}, and undone: {called}")

    def _ending(self, story: Story) -> None:
        expected = EXPECTED.get(story.path, {"completed"})
        if story.status not in expected or story.status != self._run.status:
            self._blame("end", f"{story.status} {story.error}; journal: {self._run.status}")
        elif story.status == "completed":
            wrong = _wrong(story, self._receipts())
            if wrong:
                self._blame("I2", f"answered {story.answer}: {wrong}")

    def _receipts(self) -> set[str]:
        return {receipt(call.key) for call in self._calls if call.status == 200}


def _wrong(story: Story, receipts: set[str]) -> str:
    """Say what is wrong with the answer of a completed run."""
    answer: Any = story.answer
    first = story.signals[0] if story.signals else None
    match story.path:
        case "/refund":
            right = answer["said"] == {"by": "kim"} and answer["first"] in receipts
            right = right and answer["second"] in receipts
        case "/ordered":
            right = answer == [0, 1, 2]
        case "/races":
            taken = first is not None and first.outcome == "taken"
            right = answer["went"] == "now" or (answer["went"] is None and not taken)
        case "/at_once":
            right = answer[:2] == [None, "now"] and set(answer[2:]) <= receipts
        case "/retries":
            right = set(answer) <= receipts
        case "/at_most_once":
            right = answer in receipts or answer == "ambiguous"
        case "/approves":
            said = [sent.data["approved"] for sent in story.signals if sent.outcome]
            right = answer["approved"] == said[0] and answer["receipt"] in receipts
        case "/escalates":
            right = answer == "even"
        case "/parent":
            right = len(answer) == 2
        case _:
            right = answer in receipts
    return "" if right else f"signals {story.signals}"
