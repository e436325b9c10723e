"""A run in memory: what is appended, what of it is durable, and who waits for more.

`published <= durable <= appended`: readers see only up to `durable_offset` (I1).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final
from zlib import crc32

import orjson

from durable_endpoints.engine.cancellation import Cancellation
from durable_endpoints.engine.labels import Labelling
from durable_endpoints.engine.life import Life
from durable_endpoints.engine.pace import Pace
from durable_endpoints.engine.recent import Event, Recent
from durable_endpoints.engine.replay import Replay
from durable_endpoints.engine.waits import Waits
from durable_endpoints.errors import Diverged, Fenced
from durable_endpoints.failures import plain
from durable_endpoints.frames import pack, pack_entry
from durable_endpoints.limits import REPLAY_STALL_S, RUN_BYTES_MAX, RUN_ENTRIES_MAX
from durable_endpoints.records import (
    REPEATED_KINDS,
    TERMINAL_KINDS,
    Frame,
    Kind,
    RunRecord,
    Status,
)
from durable_endpoints.states import ENDED, move

if TYPE_CHECKING:
    from durable_endpoints.engine.log import Log
    from durable_endpoints.engine.undo import Undo
    from durable_endpoints.journal import Journal


# Looking a member up costs more than all else that is done with it here.
_HEAD, _REWIND = Kind.HEAD, Kind.REWIND
_CROWD_MIN: Final = 64  # so many futures are kept before it is looked which nobody waits for


class LiveRun:
    """One run that this process drives or observes."""

    __slots__ = (
        "__weakref__", "_bytes", "_crowd", "_events", "_first_offset", "_first_seq", "_hash_in",
        "_opening", "_parked", "_parts", "_progress", "_status", "_waiters", "_waits", "at_ms",
        "body_end_seq", "cancellation", "caught_up", "children", "crc", "damaged", "durable_offset",
        "durable_seq", "early", "error", "fenced", "given_up", "head", "life", "log",
        "offset", "pace", "patches", "progress_after", "progressed", "queued", "readers", "recent",
        "record", "replay", "resting", "rewind_aware", "rewinds", "seq", "strict", "task",
        "terminal_seq", "undo",
    )  # fmt: skip

    def __init__(self, log: Log, record: RunRecord, *, opening: bool, crc: int = 0) -> None:
        self.log = log
        self.record = record
        self.seq, self.offset = record.last_seq + 1, record.events
        self.crc = crc
        self.durable_seq, self.durable_offset = record.last_seq, record.events
        self.head: bytes | None = None
        self.recent = Recent()
        self.rewinds: list[tuple[int, int]] = []  # (offset of the rewind, what it went back to)
        self.rewind_aware = False
        self.early: list[tuple[str, bytes]] | None = None  # emitted before the response began
        self.readers = 0
        self.task: asyncio.Task[object] | None = None
        self.replay: Replay | None = None
        self.damaged = False  # its journal cannot be read
        self.fenced: str | None = None
        self.life = Life()
        self.resting = False  # suspended: fenced here until it is woken
        self.cancellation = Cancellation()
        self.given_up: tuple[BaseException, bytes] | None = None  # a step out of retries; its key
        self.undo: list[Undo] = []
        self.children: dict[str, str] = {}  # run id -> name
        self.patches: dict[str, bool] = {}
        self.pace = Pace(log.loop, log.clock.monotonic_s())
        self.progressed = False  # durably, since this process took charge
        self.caught_up = opening  # with its journal, after a recovery
        self.strict = self.queued = False
        self.error: str | None = record.error
        self.body_end_seq = self.terminal_seq = -1
        self.at_ms = record.updated_at_ms
        self._status: Status = record.status
        self._opening, self._bytes = opening, 0
        self._parked = self._progress = False
        self.progress_after = 0  # repeated entries that are no progress yet
        self._waiters: list[asyncio.Future[bool]] = []
        self._crowd = _CROWD_MIN
        self._waits: Waits | None = None
        self._parts: list[bytes] = []
        self._events = 0
        self._first_seq, self._first_offset = self.seq, self.offset
        self._hash_in = self.crc

    @property
    def id(self) -> str:
        """The run id."""
        return self.record.run_id

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.record.status in ENDED

    @property
    def response_ended(self) -> bool:
        """Whether the whole response is durable."""
        return 0 <= self.body_end_seq <= self.durable_seq

    @property
    def over(self) -> bool:
        """Whether its terminal entry has been appended (I15)."""
        return self.terminal_seq >= 0

    @property
    def gone(self) -> str | None:
        """Why this process says nothing more of the run; None while it does."""
        return None if self.resting else self.fenced

    @property
    def waits(self) -> Waits:
        """What the run waits for."""
        if self._waits is None:
            self._waits = Waits(self)
        return self._waits

    def take_over(self, record: RunRecord) -> None:
        """Go on under a new epoch, from what is durable."""
        self.record = record
        self.seq = self._first_seq = record.last_seq + 1
        self.offset = self._first_offset = record.events
        self.durable_seq, self.durable_offset = record.last_seq, record.events
        self.crc = self._hash_in
        self._status, self.error = record.status, record.error
        self.life.over = self.life.halted = True
        self.life = Life()
        self.pace = Pace(self.log.loop, self.log.clock.monotonic_s())
        self.fenced, self.replay, self.task = None, None, None
        self._parked = self._progress = self.progressed = self.caught_up = self.resting = False
        self.cancellation = Cancellation()
        self.given_up, self._waits, self.undo, self.patches, self.children = None, None, [], {}, {}
        self.wake()
        self.recent.end_at(self.offset)

    def rehash(self, crc: int) -> None:
        """Set the rolling hash of the events so far."""
        self.crc = self._hash_in = crc

    def append(
        self, kind: Kind, key: bytes = b"", payload: bytes = b"",
        check: int = 0, took_us: int = 0, args: bytes = b"",
    ) -> int:  # fmt: skip
        """Append one entry in memory and return its seq. The log writes it behind.

        Raises: Fenced if this process may no longer commit for the run.
        """
        if self.fenced is not None or self.terminal_seq >= 0:
            raise Fenced(self.fenced or "the run has ended")
        log = self.log
        if self.progress_after == 0 or kind not in REPEATED_KINDS:
            self._progress = True
        else:
            self.progress_after -= 1
        part, seq = pack_entry(kind, key, check, log.now_ms(), took_us, args, payload), self.seq
        self.seq = seq + 1
        self._parts.append(part)
        size = len(part)
        self._bytes += size
        log.appended(self, size)
        if seq >= RUN_ENTRIES_MAX or self._bytes > RUN_BYTES_MAX:
            self._too_large()
        return seq

    def _too_large(self) -> None:
        if self.error is None and self.task is not None:
            self.error = (
                f"the run is larger than {RUN_ENTRIES_MAX:,} entries or {RUN_BYTES_MAX:,} bytes: "
                "split it into several runs"
            )
            self.task.cancel(self.error)

    def append_event(self, kind: Kind, payload: bytes, key: bytes = b"") -> Event:
        """Append what observers will see once it is durable.

        Raises: Fenced, as `append` does.
        """
        self.append(kind, key, payload)
        self.crc = crc = crc32(payload, self.crc)
        event = Event(self.offset, kind, payload, crc)
        self.offset += 1
        self._events += 1
        if kind == _HEAD:
            self.head = payload
        elif kind == _REWIND:
            self.rewinds.append((event.offset, int(orjson.loads(payload)["to"])))
        self.recent.add(event)
        return event

    def emit(self, ident: str, block: bytes) -> None:
        """Append an event beside the response, unless it is recorded already."""
        if self.replay is not None:
            try:
                recorded = self.replay.journal.match_emit(ident, block)
            except Diverged as error:
                raise self.diverge(error.difference) from None
            if recorded:
                self.replay.moved()
                return
        self.append_event(Kind.EMIT, block, ident.encode())

    def end(self, kind: Kind, status: Status, error: str | None, payload: bytes = b"") -> int:
        """Append the one terminal entry (I15)."""
        assert kind in TERMINAL_KINDS
        self._status = move(self._status, status)
        self.error = error and plain(error)
        seq = self.append(kind, b"", payload)
        self.terminal_seq = seq
        if self._waits is not None:
            self._waits.close()
        return seq

    def suspend(self) -> None:
        """Leave memory until a timer, a signal or somebody's word brings the run back."""
        self.park("suspended", None)
        self._progress |= not self.waits.interrupted  # it came to its wait, not to it again
        self.resting, self.fenced = True, "the run is suspended"
        if self.task is not None:
            self.task.cancel(self.fenced)

    def begin_replay(self, journal: Journal, stall_s: float = REPLAY_STALL_S) -> None:
        """Let the handler run over what is recorded."""
        self.caught_up = journal.exhausted and not journal.telling
        if journal.cancel_at is not None:
            self.cancellation.asked = True
        self.patches = dict.fromkeys(journal.patches, True)
        self.life.labelling = Labelling(self.record.labels, journal.labelled)
        self.pace.shared = self.pace.noted = journal.shared_at is not None
        self.wake()
        if journal.telling and journal.at_cancel:
            self.cancellation.tell(self)
        if not journal.exhausted or journal.telling:
            self.replay = Replay(
                journal, self.pace, self.log.loop, self._replayed, self.diverge,
                partial(self.cancellation.tell, self), stall_s,
            )  # fmt: skip

    def _replayed(self) -> None:
        self.replay = None
        self.caught_up = True
        if self.pace.shared:
            self.pace.share(self)
        if self.cancellation.asked:
            self.cancellation.tell(self)
        self.wake()

    def diverge(self, difference: str) -> Diverged:
        """Park the run: its code no longer does what is recorded (I11). Return what to raise."""
        if self.fenced is None:
            self._parts = []
            self.seq, self.offset = self._first_seq, self._first_offset
            self._events, self.crc = 0, self._hash_in
            self.park("diverged", difference)
            self.fenced = f"diverged: {difference}"
            if self.replay is not None:
                self.replay.close()
            if self.task is not None:
                self.task.cancel("diverged")
        return Diverged(difference)

    def revive(self) -> None:
        """Let a run that was dead or diverged go on, as of the next frame."""
        self._status, self.error = move(self._status, "running"), None

    def park(self, status: Status, error: str | None) -> None:
        """Set a status without an entry (I11, I17)."""
        self._status = move(self._status, status)
        self.error = error and plain(error)
        self._parked = True
        self.log.appended(self, 0)

    # --- what the log does with it

    @property
    def writable(self) -> bool:
        """Whether what is queued may be written: a fenced run has nothing to say any more."""
        return self.fenced is None or self._parked

    def take_frame(self) -> Frame:
        """Return everything appended so far as one frame, and begin the next."""
        count = len(self._parts)
        self.at_ms = self.log.now_ms()
        frame = Frame(
            self.record.run_id, self.record.epoch, self._first_seq, count, self._first_offset,
            self._events, self._hash_in, pack(self._parts) if count else b"", self.at_ms,
            self._status, self.record if self._opening else None, self.error, self._progress,
        )  # fmt: skip
        if count and self.life.labelling is not None:
            frame.labels = self.life.labelling.take()
        if self._waits is not None:
            self._waits.add_to(frame)
        if frame.status in ENDED:
            frame.wakes, frame.frees = self.record.parent, self.record.concurrency_key is not None
        self._opening = False
        self._progress = False
        self._parts = []
        self._events = 0
        self._first_seq, self._first_offset = self.seq, self.offset
        self._hash_in = self.crc
        return frame

    def committed(self, frame: Frame) -> None:
        """Raise the watermarks: the store has this frame."""
        record = self.record
        record.last_seq = self.durable_seq = frame.last_seq
        record.events = self.durable_offset = frame.first_offset + frame.events
        record.status = frame.status
        record.updated_at_ms = frame.at_ms
        record.error = frame.error
        record.attempts = 0 if frame.progress else record.attempts
        record.wake_at_ms, record.waiting = frame.wake_at_ms, frame.waiting
        record.labels = frame.labels or record.labels
        self.progressed = self.progressed or frame.progress
        if frame.wakes is not None:
            self.log.host.child_ended(self)
        if self.resting:
            self.log.host.rested(self)
        elif record.concurrency_key is not None and frame.status in ENDED:
            self.log.host.key_freed(self)
        self.recent.trim(self.durable_offset)
        self.wake()

    def fence(self, reason: str, *, keep: bool = False) -> None:
        """Stop: another owner commits for the run, or the process is leaving (I6, I22).

        `keep`: what is appended is still written, as other runs may have seen it (I8).
        """
        if self.fenced is None or self.resting:
            was_resting, self.resting = self.resting, False
            self.fenced, self._parked = reason, keep
            self._parts = self._parts if keep else []
            if self._waits is not None:
                (self._waits.stop if keep else self._waits.close)()
            if self.replay is not None:
                self.replay.close()
            if self.task is not None:
                self.task.cancel(reason)
            self.wake()
            if was_resting:  # nobody else takes it out of memory
                self.log.host.lost(self)

    # --- waiting

    def wake(self) -> None:
        """Wake everybody who waits for the watermark, or for the end."""
        if waiters := self._waiters:
            self._waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(True)

    def progress(self) -> asyncio.Future[bool]:
        """Return a future that is done at the next change of watermark or status."""
        waiter = self.log.loop.create_future()
        if len(self._waiters) >= self._crowd:  # those of readers that left, or have timed out
            self._waiters = [one for one in self._waiters if not one.done()]
            self._crowd = max(_CROWD_MIN, 2 * len(self._waiters))
        self._waiters.append(waiter)
        return waiter

    async def durable(self, seq: int) -> None:
        """Wait until entry `seq` is durable.

        Raises: Fenced if it never will be by this process.
        """
        while self.durable_seq < seq:
            if self.fenced is not None:
                raise Fenced(self.fenced)
            await self.progress()

    def recent_from(self, offset: int) -> list[Event] | None:
        """Return durable events from `offset` on; None if memory does not reach back so far."""
        return self.recent.between(offset, self.durable_offset)
