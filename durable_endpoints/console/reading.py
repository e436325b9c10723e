"""Reading journals for the console: page by page, and only what is durable (I1)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from durable_endpoints.console.digest import Digest
from durable_endpoints.engine.reader import lost
from durable_endpoints.errors import Corrupt
from durable_endpoints.frames import unpack
from durable_endpoints.limits import KIB
from durable_endpoints.llm.usage import Usage, UsageReader
from durable_endpoints.records import EVENT_KINDS, Entry

if TYPE_CHECKING:
    from durable_endpoints.stores.protocol import Store

# A piece is unpacked in one go on the event loop: this takes about a millisecond.
PIECE_BYTES: Final = 128 * KIB
DIGESTS_MAX: Final = 8


async def pieces(
    store: Store, run_id: str, seq: int = 0, *, last: int = -1
) -> AsyncIterator[list[Entry]]:
    """Yield a journal's durable entries from `seq` on, in pieces; `last` is known to be there.

    Raises: Corrupt at the first entry that is damaged or missing (I20); RunDeleted if the run went
    before it was read up to `last`.
    """
    while True:
        frames = await store.read(run_id, seq=seq, limit_bytes=PIECE_BYTES)
        if not frames:
            if seq <= last:
                raise await lost(store, run_id, f"entries from {seq} on are missing")
            return
        for frame in frames:
            entries = [e for e in unpack(frame.data, frame.first_seq) if e.seq >= seq]
            if entries and entries[0].seq != seq:
                raise Corrupt(f"run {run_id}: entry {seq} is missing")
            if entries:
                seq = entries[-1].seq + 1
                yield entries
            await asyncio.sleep(0)


async def page(store: Store, run_id: str, seq: int, limit: int) -> list[Entry]:
    """Return up to `limit` entries from `seq` on.

    Raises: Corrupt.
    """
    found: list[Entry] = []
    async for entries in pieces(store, run_id, seq):
        found += entries
        if len(found) >= limit:
            break
    return found[:limit]


async def events(store: Store, run_id: str, offset: int, limit: int) -> list[tuple[int, Entry]]:
    """Return up to `limit` events from an offset on, each with its offset.

    Raises: Corrupt.
    """
    found: list[tuple[int, Entry]] = []
    while len(found) < limit:
        frames = await store.read(run_id, offset=offset, limit_bytes=PIECE_BYTES)
        if not frames:
            break
        for frame in frames:
            at = frame.first_offset
            for entry in unpack(frame.data, frame.first_seq):
                if entry.kind in EVENT_KINDS:
                    if at >= offset:
                        found.append((at, entry))
                    at += 1
            offset = max(offset, at)
        await asyncio.sleep(0)
    return found[:limit]


class Digests:
    """The courses of the runs looked at last; each is read once and then only continued."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, Digest] = OrderedDict()
        self._usages: defaultdict[str, UsageReader] = defaultdict(UsageReader)
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, run_id: str) -> Digest:
        """Return a run's course up to now.

        Raises: Corrupt, if a part of its journal cannot be read; what came before is `known`.
        """
        digest = self.known(run_id)
        lock = self._locks.setdefault(run_id, asyncio.Lock())
        async with lock:
            async for entries in pieces(self._store, run_id, digest.next_seq):
                digest.feed(entries)
                self._usages[run_id].feed(entries)
        if len(self._known) > DIGESTS_MAX:
            gone, _ = self._known.popitem(last=False)
            self._locks.pop(gone, None)
            self._usages.pop(gone, None)
        return digest

    def usage(self, run_id: str) -> Usage:
        """Return what the model calls of a run used, as far as it has been read."""
        return self._usages[run_id].usage()

    def known(self, run_id: str) -> Digest:
        """Return what has been read of a run's course."""
        digest = self._known.setdefault(run_id, Digest())
        self._known.move_to_end(run_id)
        return digest

    def forget(self, run_id: str) -> None:
        """Drop what is kept of a run."""
        self._known.pop(run_id, None)
        self._usages.pop(run_id, None)
        self._locks.pop(run_id, None)
