"""How many runs there are of each status, kept up to date from the store alone.

Unfinished runs are counted as they are now. Ended ones are counted as they ended, over the last
24 hours; only what is new since the last look is counted again, and the store does the counting.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from durable_endpoints.console.search import floor_id
from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.records import Status
from durable_endpoints.states import TERMINAL, UNFINISHED
from durable_endpoints.stores.protocol import Begun, Query

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

logger = logging.getLogger("durable_endpoints")

DAY_MS: Final = 86_400_000
MINUTE_MS: Final = 60_000
MINUTES: Final = 60
# Rows counted at most in one look back; more would keep the store's readers busy.
BACKLOG_ROWS_MAX: Final = 20_000
# Ids are dealt a moment before their runs are durable: the last seconds are counted again.
_OVERLAP_MS: Final = 2_000
_INTERVAL_MS: Final = 1_500  # a page that asks every two seconds always finds new counts
# A look that takes long is followed by a longer pause: counting must not slow what it counts. But
# what has come meanwhile is counted by the next one, so that much longer pauses would save nothing.
_PAUSE_FACTOR: Final = 50
_FOLLOWED_MAX: Final = 20_000
_ASKED_MAX: Final = 200
NAMES_MAX: Final = 500


class Tally:
    """Counts of one store's runs."""

    backlog: Final = BACKLOG_ROWS_MAX

    def __init__(self, engine: Engine) -> None:
        self.now: dict[Status, int] = {}
        self.full = False  # more rows than were looked at
        self.names: set[str] = set()
        self._engine = engine
        self._store = engine.store
        self._clock = engine.clock
        self._minutes: dict[int, Counter[str]] = {}  # of runs up to `_since`
        self._fresh: dict[int, Counter[str]] = {}  # of those after it
        self._followed: dict[str, int] = {}  # unfinished when seen: id -> minute
        self._since = ""
        self._next_ms = 0
        self._looking: asyncio.Task[None] | None = None

    def day(self, status: Status) -> int:
        """Return how many runs of the last 24 hours ended so."""
        parts = (*self._minutes.values(), *self._fresh.values())
        return sum(counts[status] for counts in parts)

    def count(self, status: Status) -> int:
        """Return the runs of a status: now, or of the last 24 hours if it is an end."""
        return self.day(status) if status in TERMINAL else self.now.get(status, 0)

    @staticmethod
    def capped(status: Status, count: int) -> bool:
        """Say whether there may be more than counted."""
        return status not in TERMINAL and count >= LIST_ROWS_MAX

    def series(self, what: str, minutes: int = MINUTES) -> list[int]:
        """Return how many runs began ("began") or ended so, in each of the last minutes."""
        last = self._clock.now_ms() // MINUTE_MS
        empty: Counter[str] = Counter()
        return [
            self._minutes.get(m, empty)[what] + self._fresh.get(m, empty)[what]
            for m in range(last - minutes + 1, last + 1)
        ]

    async def look(self, patience_s: float = 0.05) -> None:
        """Bring the counts up to date; after a short wait that goes on behind."""
        if self._looking is None and self._clock.now_ms() >= self._next_ms:
            self._looking = self._engine.spawn(self._look())
            self._looking.add_done_callback(self._done)
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=patience_s)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the console cannot count the runs: %s", error)

    async def _look(self) -> None:
        now_ms = self._clock.now_ms()
        self._next_ms = now_ms + _INTERVAL_MS
        unfinished: set[str] = set()
        complete = True
        for status in UNFINISHED:
            rows = await self._store.list(Query(statuses=(status,), limit=LIST_ROWS_MAX))
            self.now[status] = len(rows)
            unfinished.update(row.run_id for row in rows)
            complete = complete and len(rows) < LIST_ROWS_MAX
        await self._count_new(now_ms)
        await self._follow(unfinished if complete else None)
        self._forget(now_ms)
        took_ms = self._clock.now_ms() - now_ms
        self._next_ms = max(self._next_ms, now_ms + _PAUSE_FACTOR * took_ms)

    async def _count_new(self, now_ms: int) -> None:
        since = max(self._since, floor_id(now_ms - DAY_MS))
        until = max(since, floor_id(now_ms - _OVERLAP_MS))
        settled = await self._store.begun(since, until, BACKLOG_ROWS_MAX)
        fresh = await self._store.begun(until, None, BACKLOG_ROWS_MAX)
        self._since = until
        self.full = self.full or sum(one.runs for one in settled) >= BACKLOG_ROWS_MAX
        _add(settled, self._minutes)
        self._fresh = {}
        _add(fresh, self._fresh)
        for one in settled:
            room = max(0, _FOLLOWED_MAX - len(self._followed))
            self._followed.update(dict.fromkeys(one.unfinished[:room], one.minute))
        for one in (*settled, *fresh):
            if len(self.names) < NAMES_MAX:
                self.names.add(one.name)

    async def _follow(self, unfinished: set[str] | None) -> None:
        """Count those that have ended since they were seen at work."""
        candidates = [i for i in self._followed if unfinished is None or i not in unfinished]
        for run_id in candidates[:_ASKED_MAX]:
            minute = self._followed.pop(run_id)
            row = await self._store.get(run_id)
            if row is None:
                continue
            if row.status in TERMINAL:
                self._minutes.setdefault(minute, Counter())[row.status] += 1
            else:
                self._followed[run_id] = minute  # at the end: others first

    def _forget(self, now_ms: int) -> None:
        oldest = (now_ms - DAY_MS) // MINUTE_MS
        for minute in [minute for minute in self._minutes if minute < oldest]:
            del self._minutes[minute]


def _add(found: Sequence[Begun], minutes: dict[int, Counter[str]]) -> None:
    for one in found:
        counts = minutes.setdefault(one.minute, Counter())
        counts["began"] += one.runs
        if one.status in TERMINAL:
            counts[one.status] += one.runs
