"""What of a journal still counts, without any I/O: after resets, rewinds, retries, and a crash."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from durable_endpoints.records import EVENT_KINDS, Entry, Kind

# Sets are made once: a long journal is asked for each entry, and naming a kind takes a while.
_FAILURES: Final = frozenset({Kind.STEP_FAILED, Kind.ATTEMPT, Kind.INTENT})
_STREAMED: Final = frozenset({Kind.STREAM, Kind.ITEM})
_SENT: Final = EVENT_KINDS - {Kind.REWIND}
_STREAM_LIFE: Final = _STREAMED | {Kind.STREAM_END, Kind.STEP_FAILED}
# Those whose key is a call. Others are named by whoever sends a signal, or writes a patch.
_CALLS: Final = _STREAM_LIFE | {
    Kind.STEP, Kind.VALUE, Kind.TIMER, Kind.FIRED, Kind.WAIT, Kind.RECEIVED, Kind.SPAWN,
    Kind.INTENT, Kind.ATTEMPT, Kind.UNDOABLE,
}  # fmt: skip
_VOIDING: Final = frozenset({Kind.RESET, Kind.REWIND, Kind.RETRY})


@dataclass(frozen=True, slots=True)
class Interruption:
    """What recovery appends for stream steps that a crash cut."""

    resets: tuple[str, ...] = ()
    rewind_to: int | None = None


def interruptions(entries: Sequence[Entry], *, rewinds: bool) -> Interruption:
    """Decide what becomes of stream steps that a crash cut, before any code of the run runs.

    What was published cannot be unsaid: a step of which nothing was published begins anew; one
    whose readers understand rewinds (`rewinds`), or that says `restart`, is rewound. All others
    are left to the step itself, which goes on, ends or raises by its policy.
    """
    open_at = _open_streams(entries)
    if not open_at:
        return Interruption()
    offsets = _offsets(entries)
    # The response head cannot be taken back; -1: there is none.
    heads = {entry.seq for entry in entries if entry.kind == Kind.HEAD}
    head = max((offset for seq, offset in offsets if seq in heads), default=-1)
    resets, rewind_to = [], None
    behind = _left_behind(entries, open_at)
    for key, (policy, first) in open_at.items():
        if key in behind:
            continue
        before = max((o for seq, o in offsets if seq < first), default=-1)
        published = first >= 0 and any(seq > first for seq, _ in offsets)
        if first < 0 or policy == "hold":
            resets.append(key)
        elif policy == "resume":
            continue
        elif not published and policy in ("auto", "restart"):
            resets.append(key)
        elif head <= before and (policy == "restart" or (policy == "auto" and rewinds)):
            resets.append(key)
            rewind_to = before if rewind_to is None else min(rewind_to, before)
    return Interruption(tuple(resets), rewind_to)


def _open_streams(entries: Sequence[Entry]) -> dict[str, tuple[str, int]]:
    """Return the streams that did not end: policy, and the seq of the first item, or -1."""
    found: dict[str, tuple[str, int]] = {}
    for entry in standing(entries):
        if entry.kind not in _STREAM_LIFE:
            continue
        if entry.kind == Kind.STREAM:
            found[entry.key] = (entry.payload.decode(), -1)
        elif entry.kind != Kind.ITEM:
            found.pop(entry.key, None)
        elif entry.key in found and found[entry.key][1] < 0:
            found[entry.key] = (found[entry.key][0], entry.seq)
    return found


def _left_behind(entries: Sequence[Entry], streams: Iterable[str]) -> set[str]:
    """Return the streams whose task went on to a later call: their consumer was done with them."""
    found: set[str] = set()
    places = {key: _place(key) for key in streams}
    last = {entry.key: entry.seq for entry in entries if entry.kind in (Kind.STREAM, Kind.ITEM)}
    for entry in entries:
        if entry.kind not in _CALLS:
            continue
        path, number = _place(entry.key)
        for key, (own_path, own_number) in places.items():
            if path == own_path and number > own_number and entry.seq > last.get(key, -1):
                found.add(key)
    return found


def _place(key: str) -> tuple[str, int]:
    """Return the task path and the ordinal of a call's key; -1 for what is no call."""
    path, _, number = key.partition(" ")[0].rpartition("/")
    return path, int(number) if number.isdecimal() else -1


def _offsets(entries: Sequence[Entry]) -> list[tuple[int, int]]:
    """Return (seq, offset) of every event that no rewind took back."""
    found: list[tuple[int, int]] = []
    offset = 0
    for entry in entries:
        if entry.kind in EVENT_KINDS:
            if entry.kind == Kind.REWIND:
                to = int(orjson.loads(entry.payload)["to"])
                found = [pair for pair in found if pair[1] <= to]
            else:
                found.append((entry.seq, offset))
            offset += 1
    return found


def failures_of(entries: Sequence[Entry]) -> Sequence[str]:
    """Return the call whose failure a dead run died of, as a retry is to name it.

    None if it died of something else, such as a crash loop.
    """
    last = entries[-1]
    return [last.key] if last.kind == Kind.GAVE_UP else []


def _retried(entries: Sequence[Entry]) -> dict[str, int]:
    """Return the calls whose failures are void, each with the seq up to which they are."""
    found: dict[str, int] = {}
    for entry in entries:
        if entry.kind == Kind.RETRY:
            found.update(dict.fromkeys(orjson.loads(entry.payload), entry.seq))
    return found


def standing(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that still count: without what a reset, rewind or retry took back."""
    if _VOIDING.isdisjoint({entry.kind for entry in entries}):
        return list(entries)
    last_reset = {entry.key: entry.seq for entry in entries if entry.kind == Kind.RESET}
    events = {seq for seq, _ in _offsets(entries)}
    retried = _retried(entries)
    kept = []
    for entry in entries:
        if entry.kind in _FAILURES and entry.seq < retried.get(entry.key, -1):
            continue
        if entry.kind in _STREAMED and entry.seq < last_reset.get(entry.key, -1):
            continue
        if entry.kind in _SENT and entry.seq not in events:
            continue
        kept.append(entry)
    return kept
