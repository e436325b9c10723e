"""Concurrency keys: unfinished runs of one route and key exclude each other.

Their order is the store's, in which they were opened: the first unfinished run of a key is the one
at work. Where a run must be alone, the store refuses its opening while there is another one, on
whichever node. Where runs queue, each looks whether it is the first: when it comes to its turn,
when the one before it ends, and once more when it has left memory, since whoever passes the turn
on finds it either in memory or suspended, but not in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakSet, WeakValueDictionary

import orjson

from durable_endpoints.engine.decisions import Wanted, durably
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import Scope
from durable_endpoints.errors import Fenced, Overloaded, RunNotFound
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.protocol import Query

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

TURN: Final = "turn"
# How long until it is looked again for a run that is first and changes hands: from, up to.
_AGAIN_S: Final = (0.01, 1.0)


class Conflicts:
    """Who holds which key. The key of a place: principal, route, concurrency key."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[tuple[str | None, str, str], str] = {}
        self._locks: WeakValueDictionary[tuple[str | None, str, str], asyncio.Lock] = (
            WeakValueDictionary()
        )
        self._queued: WeakSet[LiveRun] = WeakSet()  # in memory, and not the first of their key

    @asynccontextmanager
    async def at(self, principal: str | None, name: str, key: str) -> AsyncIterator[str | None]:
        """Yield the run that holds a key, if there is one; nobody here looks meanwhile."""
        place = (principal, name, key)
        lock = self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            yield await self._holder(principal, name, key)

    async def _holder(self, principal: str | None, name: str, key: str) -> str | None:
        place = (principal, name, key)
        run = self._engine.runs.get(self._live.get(place, ""))
        if run is not None and not run.over and not run.ended and run.gone is None:
            return run.id
        self._live.pop(place, None)
        if run is not None and run.gone is not None and run.durable_seq < 0:
            await run.log.flush()  # let go before its first commit, which may be under way
        first = await self._first(principal, name, key)
        return first.run_id if first is not None else None

    async def _first(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        query = Query(name=name, principal=principal, concurrency_key=key, limit=1)
        rows = await self._engine.store.list(query)
        return rows[0] if rows else None

    async def _first_beside(self, run: LiveRun) -> RunRecord | None:
        record = run.record
        return await self._first(record.principal, record.name, record.concurrency_key or "")

    def began(self, run: LiveRun) -> None:
        """Note who holds the key now, before anything of it is durable."""
        record = run.record
        if record.concurrency_key is not None:
            self._live[record.principal, record.name, record.concurrency_key] = run.id
            if len(self._live) > 2 * len(self._engine.runs) + 100:
                runs = self._engine.runs
                self._live = {place: held for place, held in self._live.items() if held in runs}

    async def check_free(self, record: RunRecord) -> None:
        """Raise Overloaded if a run cannot come back from the dead: another has its key."""
        if record.status == "dead" and record.concurrency_key is not None:
            key = record.concurrency_key
            first = await self._first(record.principal, record.name, key)
            if first is not None:
                raise Overloaded(f"run {first.run_id} is at work on {key!r}; try again at its end")

    async def replace(self, run_id: str, principal: str | None) -> None:
        """Cancel the run that holds a key; returns when it is at its end."""
        try:
            run = await self._engine.observe(run_id, principal)
        except RunNotFound:  # it has ended, and was deleted
            return
        await self._engine.cancel(run)
        while not run.ended and run.gone is None:
            await run.progress()

    async def take_turn(self, run: LiveRun) -> None:
        """Wait, durably, until no earlier run of the key is unfinished."""
        await durably(Scope(run, f"{TURN}/"), f"{TURN}/0", Wanted(TURN, TURN))

    async def check_turn(self, run: LiveRun) -> None:
        """Let a run begin if it is the first of its key now."""
        self._queued.add(run)
        with suppress(Fenced):  # whoever drives it on looks for itself
            await run.durable(run.seq - 1)  # whoever began before it is durable, too
            first = await self._first_beside(run)
            if first is not None and first.run_id == run.id:
                self._come(run)

    def _come(self, run: LiveRun) -> None:
        if run.fenced is None and not run.over:
            self._queued.discard(run)
            run.waits.turn_came()

    def rested(self, run: LiveRun) -> None:
        """Note that a run left memory; its turn may have come meanwhile."""
        if run in self._queued:
            self._queued.discard(run)
            self._engine.spawn(self._look_again(run))

    async def _look_again(self, run: LiveRun) -> None:
        first = await self._first_beside(run)
        if first is not None and first.run_id == run.id:
            await self._until_passed(run)

    async def pass_on(self, run: LiveRun) -> None:
        """Let the next run of the key begin: this one is at its end."""
        self._queued.discard(run)
        await self._until_passed(run)

    async def _until_passed(self, run: LiveRun) -> None:
        wait_s, longest_s = _AGAIN_S
        while not self._engine.leaving:
            first = await self._first_beside(run)
            if first is None or await self._give_turn(first):
                return
            await asyncio.sleep(wait_s)  # it changes hands
            wait_s = min(2 * wait_s, longest_s)

    async def _give_turn(self, first: RunRecord) -> bool:
        """Have a run begin that is the first of its key; False if nobody has it just now."""
        engine = self._engine
        live = engine.runs.get(first.run_id)
        if live is not None and live.gone is None:
            self._come(live)
            return True  # one that is about to rest looks again then
        if first.status == "diverged" or engine.waking.take is None:
            return True
        if first.status == "suspended":
            if not _waits_for_turn(first):
                return True  # it has had its turn, and waits for something else
            await engine.waking.take([first])
            return first.run_id in engine.runs
        return engine.remote is None or await engine.remote.turn_came(first.run_id)


def _waits_for_turn(record: RunRecord) -> bool:
    return any(wait["kind"] == TURN for wait in orjson.loads(record.waiting or "[]"))
