"""From a journal's entries to what a run did, and when. Pure; entries are fed as they come."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson

from durable_endpoints.records import Entry, Kind

# Further steps are counted, not drawn: a drawing of more tells nobody anything.
SPANS_MAX: Final = 50_000
MARKS_MAX: Final = 1_000

_BEGINNINGS: Final = {
    Kind.STREAM: "stream",
    Kind.INTENT: "effect",
    Kind.TIMER: "timer",
    Kind.WAIT: "wait",
}
_ENDINGS: Final = frozenset(
    {Kind.STEP, Kind.STEP_FAILED, Kind.STREAM_END, Kind.FIRED, Kind.RECEIVED}
)


@dataclass(slots=True)
class Span:
    """One step or wait; times in microseconds since the run began, `end_us` None while open."""

    ident: str
    name: str
    sort: str  # step, stream, effect, timer, wait
    begin_us: int
    end_us: int | None
    seq: int  # of its last entry
    took_us: int = 0
    failed: bool = False
    items: int = 0
    restarts: int = 0  # how often a crash made it begin anew
    note: str = ""
    tries: list[tuple[int, int]] = field(default_factory=list)  # attempts that came to nothing
    part_us: int = 0  # when the last attempt began
    seen_us: int = 0  # when it last recorded something

    @property
    def lane(self) -> str:
        """The path of the task that called it; empty for the handler itself."""
        return self.ident[: self.ident.rfind("/") + 1]


@dataclass(slots=True)
class Group:
    """All steps of one name."""

    count: int = 0
    failed: int = 0
    total_us: int = 0
    longest_us: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to the run at one moment."""

    at_us: int
    sort: str  # recovery, rewind, signal, cancel, retry, child
    text: str


class Digest:
    """What is known of a run's course, up to entry `next_seq - 1`."""

    def __init__(self) -> None:
        self.next_seq = 0
        self.began_ms = 0
        self.origin: tuple[str, int] | None = None  # (run, entry) that it was forked from
        self.forked_by = ""
        self.last_us = 0
        self.spans: list[Span] = []
        self.left_out = 0
        self.groups: dict[str, Group] = {}
        self.marks: list[Mark] = []
        self.rewinds: list[tuple[int, int]] = []  # (to, offset): what lies between is void
        self.events_us = array("q")
        self.offset = 0  # of the next event
        self.bytes_out = 0
        self.body_ended = False
        self._open: dict[str, Span] = {}

    def feed(self, entries: Iterable[Entry]) -> None:
        """Take further entries, in order."""
        for entry in entries:
            if entry.seq != self.next_seq:
                continue
            if entry.seq == 0:
                self.began_ms = entry.at_ms
                self.origin = origin_of(entry)
                self.forked_by = _by(entry.args) if self.origin else ""
            self.next_seq += 1
            at_us = max(0, (entry.at_ms - self.began_ms) * 1000)
            self.last_us = max(self.last_us, at_us)
            self._take(entry, at_us)

    @property
    def open(self) -> list[Span]:
        """What has begun and not ended, as far as the journal says."""
        return list(self._open.values())

    def _take(self, entry: Entry, at_us: int) -> None:
        kind = entry.kind
        if kind in _ENDINGS:
            self._end(entry, at_us)
        elif kind in (Kind.HEAD, Kind.CHUNK, Kind.EMIT):
            # In order even when the clock was set back: drawn thousands of times.
            self.events_us.append(max(at_us, self.events_us[-1]) if self.events_us else at_us)
            self.offset += 1
            if kind == Kind.CHUNK:
                self.bytes_out += len(entry.payload)
        elif kind == Kind.ITEM:
            span = self._open.get(entry.key)
            if span is not None:
                span.items += 1
                span.seq, span.seen_us = entry.seq, at_us
        elif kind in _BEGINNINGS:
            self._begin(entry, at_us, _BEGINNINGS[kind])
        elif kind == Kind.ATTEMPT:
            begin_us = max(0, at_us - entry.took_us)
            span = self._begin(entry, begin_us, "step")
            span.tries.append((begin_us, at_us))
            span.seq, span.part_us = entry.seq, at_us
        elif kind == Kind.BODY_END:
            self.body_ended = True
        else:
            self._mark(entry, at_us)

    def _mark(self, entry: Entry, at_us: int) -> None:
        kind, name = entry.kind, entry.key.partition(" ")[2]
        if kind == Kind.RESET:
            span = self._open.get(entry.key)
            if span is not None:
                span.restarts, span.items = span.restarts + 1, 0
                span.tries.append((span.part_us, max(span.part_us, span.seen_us)))
                span.part_us = span.seen_us = at_us
            found = ("recovery", f"recovered: {name} begins anew")
        elif kind == Kind.REWIND:
            to = int(orjson.loads(entry.payload)["to"])
            self.rewinds.append((to, self.offset))
            self.offset += 1
            found = ("rewind", f"rewind: the events after {to} were taken back")
        elif kind == Kind.SIGNAL:
            by = _by(entry.payload)
            found = ("signal", f"the signal {entry.key} arrived{f' from {by}' if by else ''}")
        elif kind == Kind.CANCEL:
            found = ("cancel", f"{_by(entry.args) or 'somebody'} asked for the run to be cancelled")
        elif kind == Kind.RETRY:
            found = ("retry", f"{_by(entry.args) or 'somebody'} had the run go on")
        elif kind == Kind.SPAWN:
            found = ("child", f"the run {name} was spawned")
        else:
            return
        if len(self.marks) < MARKS_MAX:
            self.marks.append(Mark(at_us, *found))

    def _begin(self, entry: Entry, at_us: int, sort: str) -> Span:
        span = self._open.get(entry.key)
        if span is None:
            ident, _, name = entry.key.partition(" ")
            span = Span(ident, name, sort, at_us, None, entry.seq, part_us=at_us, seen_us=at_us)
            self._open[entry.key] = span
            self._keep(span)
        elif sort == "effect":
            span.sort = sort
        return span

    def _end(self, entry: Entry, at_us: int) -> None:
        span = self._open.pop(entry.key, None)
        if span is None:
            ident, _, name = entry.key.partition(" ")
            begin_us = max(0, at_us - entry.took_us)
            span = Span(ident, name, "step", begin_us, at_us, entry.seq, part_us=begin_us)
            self._keep(span)
        span.end_us, span.seq = at_us, entry.seq
        if entry.kind == Kind.STEP_FAILED:
            span.failed = True
        elif entry.kind == Kind.STREAM_END:
            span.note = entry.payload.decode(errors="replace")  # closed, truncated
        elif entry.kind == Kind.FIRED and span.sort == "wait":
            span.note = "timed out"
        span.took_us = took_us = entry.took_us or at_us - span.begin_us
        group = self.groups.setdefault(span.name, Group())
        group.count += 1
        group.failed += span.failed
        group.total_us += took_us
        group.longest_us = max(group.longest_us, took_us)

    def _keep(self, span: Span) -> None:
        if len(self.spans) < SPANS_MAX:
            self.spans.append(span)
        else:
            self.left_out += 1


def _by(text: bytes) -> str:
    """Return who did what an entry notes, if it is known."""
    return str(orjson.loads(text).get("by") or "") if text else ""


def origin_of(started: Entry) -> tuple[str, int] | None:
    """Return the run that a fork shares a journal with, and up to which entry."""
    if b'"fork"' not in started.args:
        return None
    found = orjson.loads(started.args).get("fork")
    return (str(found[0]), int(found[1])) if found else None
