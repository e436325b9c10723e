"""What is true of a run: its row, its journal's entries, and the frames they travel in."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

Status = Literal["running", "suspended", "completed", "failed", "cancelled", "dead", "diverged"]


class Kind(IntEnum):
    """Kinds of journal entries. The numbers are on disk: never reuse one."""

    STARTED = 1  # the request, or the call, that the run answers
    STEP = 2  # a step's result
    STEP_FAILED = 3  # a step's error, as the handler saw it
    STREAM = 4  # a stream step began; says what is to happen if a crash cuts it
    ITEM = 5  # an item of a stream step
    STREAM_END = 6  # the stream step is complete
    RESET = 7  # the recorded items of an interrupted stream step are void
    VALUE = 8  # now() and uuid7(): what the handler was told
    TIMER = 9  # a wait for a time began
    FIRED = 10  # a timer's time has come, or a wait's timeout
    WAIT = 11  # a wait for a signal, a decision or a child run began
    SIGNAL = 12  # a message from outside arrived
    RECEIVED = 13  # a wait has its answer
    INTENT = 14  # an effect is about to begin
    ATTEMPT = 15  # an attempt failed; when the next one is due
    HEAD = 16  # event: status and headers of the response
    CHUNK = 17  # event: a piece of the response body, or one SSE event of it
    EMIT = 18  # event: beside the response body, by emit()
    REWIND = 19  # event: readers drop what came after an offset
    BODY_END = 20  # the response is complete
    CANCEL = 24  # somebody asked for the run to be cancelled
    SPAWN = 25  # a child run, by its id
    RETRY = 26  # somebody had a dead run go on: the failures named are void
    UNDOABLE = 27  # a step completed that has a compensation
    SHARED = 29  # from here on completions keep their distance: tasks work side by side
    GAVE_UP = 30  # the run is dead of a call that used up its retries
    LABEL = 31  # all labels of the run, as they are from here on
    PATCH = 28  # the run began with, or has reached, a changed piece of code
    COMPLETED = 32
    FAILED = 33
    CANCELLED = 34


EVENT_KINDS = frozenset({Kind.HEAD, Kind.CHUNK, Kind.EMIT, Kind.REWIND})
# What a recovery that goes nowhere appends again and again (I17).
REPEATED_KINDS = frozenset(
    {Kind.STREAM, Kind.ITEM, Kind.RESET, Kind.HEAD, Kind.CHUNK, Kind.EMIT, Kind.REWIND}
)
TERMINAL_KINDS = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.CANCELLED})


class Entry(NamedTuple):
    """One journal entry. `key` is a step's identity, `args` its arguments as recorded."""

    seq: int
    kind: Kind
    key: str
    check: int  # hash of the arguments; 0 where there are none to compare
    at_ms: int
    took_us: int
    args: bytes
    payload: bytes


@dataclass(slots=True)
class RunRecord:
    """A run as the store knows it."""

    run_id: str
    name: str
    status: Status
    created_at_ms: int
    updated_at_ms: int
    epoch: int = 1
    last_seq: int = -1
    events: int = 0
    attempts: int = 0
    version: str = "1"
    principal: str | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    error: str | None = None
    wake_at_ms: int | None = None  # of a suspended run: when its first timer is due
    waiting: str | None = None  # of a suspended run: JSON, for people: what it waits for
    parent: str | None = None  # the run that spawned it
    concurrency_key: str | None = None  # unfinished runs of one key and name exclude each other
    labels: str | None = None  # JSON object of texts, as `labels.merged` writes it
    # Said at the opening only: it is refused while there is another unfinished one of the key.
    exclusive: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class WaitRecord:
    """An open wait for a signal, as the store lists it for those who look for it."""

    run_id: str
    ident: str  # of the wait inside its run
    kind: str  # "signal", "approval" or "decision"
    name: str
    since_ms: int
    until_ms: int | None = None
    match: str | None = None  # canonical JSON of the fields that an event must have
    summary: str | None = None  # for whom is to answer
    principal: str | None = None


@dataclass(slots=True)
class Frame:
    """The entries of one run in one batch: what the store writes as one row."""

    run_id: str
    epoch: int
    first_seq: int
    entries: int
    first_offset: int
    events: int
    hash_in: int  # rolling hash of all events before `first_offset`
    data: bytes
    at_ms: int
    status: Status
    opening: RunRecord | None = None  # set in a run's first frame
    error: str | None = None
    progress: bool = True  # the run got further than ever: its recoveries count anew (I17)
    wake_at_ms: int | None = None
    waiting: str | None = None
    waits: tuple[WaitRecord, ...] = ()  # opened in this frame
    answered: tuple[str, ...] = ()  # idents of waits that are over
    wakes: str | None = None  # a suspended run to wake: the parent of one that ended
    labels: str | None = None  # all of the run's, if they have changed
    frees: bool = field(default=False, kw_only=True)  # the run's concurrency key: it is at its end

    @property
    def last_seq(self) -> int:
        """Seq of the last entry; `first_seq - 1` in a frame that only changes the status."""
        return self.first_seq + self.entries - 1
