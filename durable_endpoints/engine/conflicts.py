"""Concurrency keys: unfinished runs of one route and key exclude each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from durable_endpoints.engine.decisions import Wanted, durably
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import Scope
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.protocol import Query

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

_UNFINISHED: Final = ("running", "suspended", "diverged")
TURN: Final = "turn"


class Conflicts:
    """Who holds which key. The key of a place: principal, route, concurrency key."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[tuple[str | None, str, str], str] = {}
        self._locks: WeakValueDictionary[tuple[str | None, str, str], asyncio.Lock] = (
            WeakValueDictionary()
        )

    @asynccontextmanager
    async def at(self, principal: str | None, name: str, key: str) -> AsyncIterator[str | None]:
        """Yield the run that holds a key, if there is one; nobody else looks meanwhile."""
        place = (principal, name, key)
        lock = self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            yield await self._holder(principal, name, key)

    async def _holder(self, principal: str | None, name: str, key: str) -> str | None:
        place = (principal, name, key)
        run = self._engine.runs.get(self._live.get(place, ""))
        if run is not None and not run.over and not run.ended:
            return run.id
        self._live.pop(place, None)
        rows = await self._rows(principal, name, key)
        return rows[-1].run_id if rows else None

    async def _rows(self, principal: str | None, name: str, key: str) -> list[RunRecord]:
        query = Query(_UNFINISHED, name, concurrency_key=key, limit=500)
        rows = await self._engine.store.list(query)
        return [row for row in rows if row.principal == principal]

    def began(self, run: LiveRun) -> None:
        """Note who holds the key now, before anything of it is durable."""
        record = run.record
        if record.concurrency_key is not None:
            self._live[record.principal, record.name, record.concurrency_key] = run.id
            if len(self._live) > 2 * len(self._engine.runs) + 100:
                runs = self._engine.runs
                self._live = {place: held for place, held in self._live.items() if held in runs}

    async def replace(self, run_id: str, principal: str | None) -> None:
        """Cancel the run that holds a key; returns when it is at its end."""
        run = await self._engine.observe(run_id, principal)
        await self._engine.cancel(run)
        while not run.ended and run.gone is None:
            await run.progress()

    async def take_turn(self, run: LiveRun) -> None:
        """Wait, durably, until no earlier run of the key is unfinished."""
        await durably(Scope(run, f"{TURN}/"), f"{TURN}/0", Wanted(TURN, TURN))

    async def check_turn(self, run: LiveRun) -> None:
        """Let a run begin if it is the first of its key now."""
        record = run.record
        await run.durable(run.seq - 1)  # whoever began before it is durable, too
        rows = await self._rows(record.principal, record.name, record.concurrency_key or "")
        if all(row.run_id >= run.id for row in rows) and run.fenced is None and not run.over:
            run.waits.turn_came()

    async def pass_on(self, run: LiveRun) -> None:
        """Let the next run of the key begin: this one is at its end."""
        record = run.record
        rows = await self._rows(record.principal, record.name, record.concurrency_key or "")
        for row in reversed(rows):  # the oldest first
            live = self._engine.runs.get(row.run_id)
            if live is not None and not live.resting:
                live.waits.turn_came()
            elif row.status == "suspended" and self._engine.waking.take is not None:
                await self._engine.waking.take([row])
            elif live is None and self._engine.remote is not None:
                self._engine.remote.turn_came(row.run_id)
            return
