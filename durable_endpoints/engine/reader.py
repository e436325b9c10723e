"""Reading a run's events from a cursor: memory for the recent end, the store for the rest."""

from __future__ import annotations

from typing import Final
from zlib import crc32

import orjson

from durable_endpoints.engine.life import expire
from durable_endpoints.engine.log import Log
from durable_endpoints.engine.recent import Event
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Corrupt, DurableError, Fenced, RunDeleted, RunNotFound
from durable_endpoints.frames import unpack
from durable_endpoints.limits import READ_BYTES_MAX
from durable_endpoints.records import EVENT_KINDS, Entry, Kind
from durable_endpoints.stores.protocol import Store, StoredFrame


class Reader:
    """One observer's place in a run's events."""

    __slots__ = ("_store", "_suspended", "offset", "run")

    def __init__(self, store: Store, run: LiveRun, offset: int = 0) -> None:
        self._store = store
        self.run = run
        self.offset = offset  # of the next event to read
        self._suspended = False  # as it was last seen

    async def available(self) -> list[Event]:
        """Return durable events from the cursor on, without waiting for more; moves the cursor.

        Raises: RunDeleted, Corrupt if the store no longer has what it had (I5).
        """
        run = self.run
        if self.offset >= run.durable_offset:
            return []
        events = run.recent_from(self.offset)
        if events is None:
            events = await stored_events(self._store, run, self.offset)
        if events:
            self.offset = events[-1].offset + 1
        return events

    @property
    def at_end(self) -> bool:
        """Whether the cursor is behind the last event there will be."""
        run = self.run
        return self.offset >= run.durable_offset and (run.response_ended or run.ended)

    async def read(self, timeout_s: float | None = None) -> list[Event] | None:
        """Return the next events, waiting for them; an empty list at the end of the response.

        None if `timeout_s` seconds passed without one, or when the run is suspended or goes on.

        Raises: Fenced if the run goes on elsewhere; RunDeleted, Corrupt.
        """
        run = self.run
        while True:
            if self.offset < run.durable_offset:
                events = await self.available()
                if events:
                    return events
            if run.response_ended or run.ended:
                return []
            if run.gone is not None:
                raise Fenced(run.gone)
            suspended = run.record.status == "suspended"
            if suspended != self._suspended:
                self._suspended = suspended
                return None
            if not await self.moved(timeout_s):
                return None

    async def moved(self, timeout_s: float | None = None) -> bool:
        """Wait for a change of the run; False if `timeout_s` seconds pass without one."""
        run = self.run
        waiter = run.progress()
        if timeout_s is None:
            return await waiter
        timer = run.log.loop.call_later(timeout_s, expire, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()


def events_of(frame: StoredFrame, *, until: int) -> list[Event]:
    """Return a frame's events below offset `until`, with their hashes."""
    offset, crc = frame.first_offset, frame.hash_in
    events = []
    for entry in unpack(frame.data, frame.first_seq):
        if entry.kind in EVENT_KINDS:
            crc = crc32(entry.payload, crc)
            if offset < until:
                events.append(Event(offset, entry.kind, entry.payload, crc))
            offset += 1
    return events


async def stored_events(store: Store, run: LiveRun, offset: int) -> list[Event]:
    """Return durable events from `offset` on, at least one, up to a read's limit.

    Raises: RunDeleted, Corrupt if the store no longer has what it had (I5).
    """
    found: list[Event] = []
    for frame in await store.read(run.id, offset=offset, limit_bytes=READ_BYTES_MAX):
        found += events_of(frame, until=run.durable_offset)
    events = [event for event in found if event.offset >= offset]
    if not events or events[-1].offset != offset + len(events) - 1:
        raise await lost(store, run.id, f"events from {offset} on are missing")
    return events


# The answer to a commit that is done comes soon, or this is not the node to wait at.
_BEHIND_S: Final = 5.0


async def event_at(store: Store, run: LiveRun, offset: int) -> Event | None:
    """Return one durable event; None if there is none at this offset.

    Raises: Fenced if it is durable by another process's work; RunDeleted, Corrupt.
    """
    if offset < 0 or (offset >= run.durable_offset and not await _is_behind(store, run, offset)):
        return None
    events = run.recent_from(offset)
    if events is None:
        events = await stored_events(store, run, offset)
    return events[0] if events else None


async def _is_behind(store: Store, run: LiveRun, offset: int) -> bool:
    """Wait for an event that the store has, if it has it, and this process does not know yet.

    Until the answer to a commit has come, another node may show what is durable by it.
    """
    record = await store.get(run.id)
    if record is None or record.events <= offset:
        return offset < run.durable_offset
    reader = Reader(store, run, offset)
    while offset >= run.durable_offset:
        if run.gone is not None:
            raise Fenced(run.gone)
        if run.ended or not await reader.moved(_BEHIND_S):
            return False
    return True


async def lost(store: Store, run_id: str, what: str) -> DurableError:
    """Return why the store lacks what it had: the run was deleted meanwhile, or is damaged."""
    if await store.get(run_id) is None:
        return RunDeleted(run_id)
    return Corrupt(f"run {run_id}: {what}")


async def read_journal(store: Store, run_id: str, *, seq: int = 0, last: int = -1) -> list[Entry]:
    """Return all durable entries from `seq` on; entry `last` is known to be one of the journal's.

    Raises: RunDeleted if the run went before it was read up to `last`; Corrupt if a frame is
    damaged or missing (I20).
    """
    entries: list[Entry] = []
    expected = seq
    place = (0, 0) if seq == 0 else None
    while True:
        frames = await store.read(run_id, seq=expected, limit_bytes=READ_BYTES_MAX)
        if not frames:
            if expected <= last:  # never a part as if it were the whole
                raise await lost(store, run_id, f"entries from {expected} on are missing")
            return entries
        for frame in frames:
            part = unpack(frame.data, frame.first_seq)
            place = _behind(frame, part, place)
            if not entries:
                part = [entry for entry in part if entry.seq >= seq]
            if len(part) == 0 or part[0].seq != expected:
                raise Corrupt(f"run {run_id}: entry {expected} is missing")
            entries += part
            expected = part[-1].seq + 1


def _behind(
    frame: StoredFrame, part: list[Entry], place: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the offset and the hash behind a frame that begins at `place`, if that is known.

    Raises: Corrupt if what its row says of it is not so: its checksum does not cover that.
    """
    offset, crc = frame.first_offset, frame.hash_in
    events = [entry.payload for entry in part if entry.kind in EVENT_KINDS]
    told = (frame.entries, frame.events)
    if told != (len(part), len(events)) or (place is not None and place != (offset, crc)):
        raise Corrupt(f"the row of the frame at entry {frame.first_seq} does not fit its bytes")
    for payload in events:
        crc = crc32(payload, crc)
    return offset + len(events), crc


def restore(run: LiveRun, entries: list[Entry]) -> None:
    """Give a run loaded from the store what its journal says of its response.

    Raises: Corrupt if the events are not as many as its row says.
    """
    crc, offset = 0, 0
    run.rewinds.clear()
    for entry in entries:
        if entry.kind in EVENT_KINDS:
            crc = crc32(entry.payload, crc)
            if entry.kind == Kind.HEAD and run.head is None:
                run.head = entry.payload
            elif entry.kind == Kind.REWIND:
                run.rewinds.append((offset, int(orjson.loads(entry.payload)["to"])))
            offset += 1
        elif entry.kind == Kind.BODY_END:
            run.body_end_seq = entry.seq
    if not entries or entries[0].kind != Kind.STARTED:
        raise Corrupt(f"run {run.id}: its journal does not begin with its start")
    if entries[-1].seq != run.record.last_seq:
        last = entries[-1].seq
        raise Corrupt(f"run {run.id}: its row ends at {run.record.last_seq}, its journal at {last}")
    if offset != run.offset:
        raise Corrupt(f"run {run.id}: its row counts {run.offset} events, its journal {offset}")
    run.rehash(crc)


async def stored_run(store: Store, log: Log, run_id: str, principal: str | None) -> LiveRun | None:
    """Return a run as the store has it; None if it was deleted while it was read.

    Raises: RunNotFound; RunDeleted if it was, and was the principal's.
    """
    record = await store.get(run_id)
    if record is None:
        if await store.was_deleted(run_id, principal):
            raise RunDeleted(run_id)
        raise RunNotFound(run_id)
    run = LiveRun(log, record, opening=False)
    try:
        entries = await read_journal(store, run_id, last=record.last_seq)
        if len(entries) > record.last_seq + 1:  # a commit has come in between?
            later = await store.get(run_id)
            if later is None or later.last_seq != record.last_seq:
                entries = entries[: record.last_seq + 1]
        restore(run, entries)
    except RunDeleted:
        return None
    except Corrupt as error:
        run.error = str(error)
        run.fenced, run.damaged = f"damaged: {error}", True
    return run
