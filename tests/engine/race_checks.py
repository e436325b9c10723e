"""What must be true of every run, whatever raced, by its journal and by the world outside."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from durable_endpoints.engine.attempts import key_of
from durable_endpoints.records import TERMINAL_KINDS, Entry, Kind, RunRecord
from tests.engine.race_programs import ATTEMPTS, Done

_STATUS = {Kind.COMPLETED: "completed", Kind.FAILED: "failed", Kind.CANCELLED: "cancelled"}
_LISTED = frozenset({"signal", "approval", "decision"})


@dataclass
class Sent:
    """What the senders know of one run: signals by id, with the word that they got."""

    accepted: dict[str, str] = field(default_factory=dict)  # id -> name
    unknown: set[str] = field(default_factory=set)  # nobody was told: either way is right
    refused: set[str] = field(default_factory=set)
    cancelled: bool = False  # answered


def check_journal(record: RunRecord, entries: Sequence[Entry]) -> None:
    """I8, I15 and the order of waits and answers."""
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    ends = [entry for entry in entries if entry.kind in TERMINAL_KINDS]
    assert len(ends) <= 1, f"terminal entries: {ends}"
    if ends:
        assert ends[0] is entries[-1], "entries behind the end"
        assert record.status == _STATUS[ends[0].kind]
    else:
        assert record.status not in _STATUS.values(), record.status
    assert record.status != "diverged", record.error
    results = Counter(
        entry.key for entry in entries
        if entry.kind in (Kind.STEP, Kind.FIRED, Kind.RECEIVED, Kind.WAIT, Kind.TIMER, Kind.SPAWN)
        and entry.kind not in (Kind.WAIT, Kind.TIMER)
    )  # fmt: skip
    assert all(count == 1 for count in results.values()), f"two outcomes: {results}"
    _check_times(entries)


def _check_times(entries: Sequence[Entry]) -> None:
    """No timer is early (I16)."""
    until: dict[str, int] = {}
    for entry in entries:
        if entry.kind in (Kind.TIMER, Kind.WAIT):
            wanted = orjson.loads(entry.payload)["until"]
            if wanted is not None:
                until[entry.key] = wanted
        elif entry.kind == Kind.FIRED:
            assert entry.at_ms >= until[entry.key], f"{entry.key} is early"


def check_signals(entries: Sequence[Entry], sent: Sent) -> None:
    """A signal that was answered is there once, given to one wait, in order by name (I16)."""
    seqs: dict[int, tuple[str, str]] = {}
    for entry in entries:
        if entry.kind == Kind.SIGNAL:
            seqs[entry.seq] = (entry.key, orjson.loads(entry.payload)["id"])
    found = Counter(ident for _, ident in seqs.values())
    assert all(count == 1 for count in found.values()), f"twice: {found}"
    for ident in sent.accepted:
        assert ident in found, f"signal {ident} was answered and is not in the journal"
    for ident in sent.refused:
        assert ident not in found, f"signal {ident} was refused and is in the journal"
    kinds = {
        entry.key: orjson.loads(entry.payload)["kind"]
        for entry in entries if entry.kind == Kind.WAIT
    }  # fmt: skip
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.kind == Kind.RECEIVED and kinds.get(entry.key) in _LISTED:
            seq = orjson.loads(entry.payload)["signal"]
            taken[seqs[seq][0], kinds[entry.key]].append(seq)
    flat = [seq for given in taken.values() for seq in given]
    assert len(flat) == len(set(flat)), f"one signal, two waits: {taken}"
    for key, given in taken.items():
        if key[1] == "signal":
            assert given == sorted(given), f"out of order: {key} {given}"


def check_done(
    record: RunRecord, entries: Sequence[Entry], done: Iterable[Done], crashes: int
) -> None:
    """I2, I3, the budgets, and the undoing."""
    calls: dict[tuple[str, str], list[Done]] = defaultdict(list)
    for one in done:
        calls[one.what, one.label].append(one)
    retried = sum(entry.kind == Kind.RETRY for entry in entries)
    intended = {
        key_of(record.run_id, *entry.key.split(" ", 1))
        for entry in entries if entry.kind == Kind.INTENT
    }  # fmt: skip
    for (what, label), made in calls.items():
        if what in ("charge", "book", "once", "unbook"):
            assert len({one.key for one in made}) == 1, f"{what} {label}: several keys"
            assert made[0].key in intended, f"{what} {label} began without a durable intent"
        if what in ("flaky", "charge"):
            most = ATTEMPTS * (1 + retried) + crashes
            assert len(made) <= most, f"{what} {label}: {len(made)} attempts, {most} allowed"
        if what == "once":
            assert len(made) <= 1 + retried, f"{label}: {len(made)} times"
    attempts = Counter(entry.key for entry in entries if entry.kind == Kind.ATTEMPT)
    for key, count in attempts.items():
        assert count <= (ATTEMPTS - 1) * (1 + retried), f"{key}: {count} failed attempts"
    _check_undone(record, entries, calls)


def _check_undone(
    record: RunRecord, entries: Sequence[Entry], calls: Mapping[tuple[str, str], list[Done]]
) -> None:
    done = [entry.key for entry in entries if entry.kind == Kind.UNDOABLE]
    undone = [
        entry.key.partition(" ")[0].removeprefix("undo/")
        for entry in entries if entry.kind == Kind.STEP and entry.key.startswith("undo/")
    ]  # fmt: skip
    if record.status in ("failed", "cancelled"):
        wanted = [key.partition(" ")[0] for key in reversed(done)]
        assert undone == wanted, f"{record.status}: undone {undone}, done {done}"
    elif record.status == "completed":
        assert not undone
        assert not [what for what, _ in calls if what == "unbook"]


def open_waits(entries: Sequence[Entry]) -> dict[str, dict[str, object]]:
    """Return the recorded waits without an answer, by key."""
    found: dict[str, dict[str, object]] = {}
    for entry in entries:
        if entry.kind in (Kind.WAIT, Kind.TIMER):
            found[entry.key] = orjson.loads(entry.payload)
        elif entry.kind in (Kind.FIRED, Kind.RECEIVED):
            found.pop(entry.key, None)
    return found


def kept_signals(entries: Sequence[Entry]) -> dict[str, int]:
    """Return how many signals of each name nobody has taken."""
    kept = {entry.seq: entry.key for entry in entries if entry.kind == Kind.SIGNAL}
    for entry in entries:
        if entry.kind == Kind.RECEIVED:
            kept.pop(orjson.loads(entry.payload).get("signal"), None)
    return dict(Counter(kept.values()))
