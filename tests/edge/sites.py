"""An edge node and a central node in one process, and a way between them that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from durable_endpoints import (
    EdgeStore,
    Retry,
    current_run,
    durable,
    effect,
    emit,
    sleep,
    step,
)
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.postgres import PostgresStore
from tests.engine.worlds import PATIENCE_S, World
from tests.support.gated import counts, gate, gates, turns
from tests.support.server import TCPProxy

acted: list[str] = []


@durable
async def acts() -> str:
    emit("begun")
    await gate("acts")
    await effect.run("act", lambda: acted.append(current_run().id))
    return "acted"


@durable
async def gives_up() -> None:
    async def fail() -> None:
        raise ValueError("no")

    await step(retry=Retry(attempts=1), name="fail")(fail)()


@durable
async def naps(seconds: float) -> str:
    emit("asleep")
    await sleep(seconds)
    return "awake"


@durable
async def strolls(most: int) -> int:
    for number in range(most):
        await asyncio.sleep(0.005)
        emit(number)
        await step.run("turn", turns.append, number)
    return most


@durable
async def has_child() -> int:
    child = await current_run().spawn(counts, 3)
    result: int = await child
    return result


class Site:
    """One edge node, one central node. `way` is the edge's only way to the database."""

    def __init__(self, address: str, file: Path, way: TCPProxy, **more: Any) -> None:
        self.address = address
        self.way = way
        self.file = file
        self.more = more
        self.edge = World(self.new_store())
        self.centre = World(PostgresStore(address))

    def new_store(self) -> EdgeStore:
        parts = urlsplit(self.address)
        here = self.address.replace(f":{parts.port}/", f":{self.way.port}/")
        return EdgeStore(f"sqlite:///{self.file}", here, **self.more)

    @property
    def store(self) -> EdgeStore:
        assert isinstance(self.edge.store, EdgeStore)
        return self.edge.store

    async def boot_edge(self, *, suspend_grace_s: float = 60) -> None:
        await self.edge.boot()
        self.edge.engine.waking.suspend_grace_s = suspend_grace_s
        self.edge.recovery.start()

    async def kill_edge(self) -> None:
        """End the edge's process, as far as that goes here; the file's lock is given back."""
        await self.edge.crash()
        store = self.store
        await store._shipper.stop()
        await store.centre.vanish()
        await store.local.close()
        self.edge.engine._log = None
        self.edge.store = self.new_store()

    async def cut(self) -> None:
        """Cut the edge off from the database, and wait until nothing of its connections is left."""
        self.way.refusing = True
        while self.way._tasks:  # one that is just being made is not in reach of a cut yet
            self.way.cut()
            await asyncio.sleep(0.002)

    def mend(self) -> None:
        self.way.refusing = False

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():
                await asyncio.sleep(0.01)

    async def at_centre(self, run_id: str) -> RunRecord | None:
        return await self.centre.store.get(run_id)

    async def shipped(self) -> None:
        """Wait until nothing is on the edge's disk only."""

        async def done() -> bool:
            return not any(track.dirty for track in self.store._shipper.tracks.values())

        await self.until(done)

    async def here_only(self, run_id: str) -> bool:
        return await self.store.local.get(run_id) is not None

    async def driven_at_centre(self, run_id: str) -> None:
        async def there() -> bool:
            return run_id in self.centre.engine.runs

        await self.until(there)

    async def driven_here(self, run_id: str) -> None:
        """Wait until the edge has taken it up: the centre may have been slow to say whose it is."""

        async def here() -> bool:
            return run_id in self.edge.engine.runs

        await self.until(here)

    async def begun(self, function: Callable[..., Any], *args: Any) -> str:
        """Begin a run at the edge, and wait until it is durably at its gate, or its wait."""
        run = await self.edge.start(function, *args)
        live = self.edge.engine.runs[run.id]
        least = 1 + 2 * args[1] if function is counts else 2
        async with asyncio.timeout(PATIENCE_S):
            while live.seq < least or live.durable_seq < live.seq - 1:
                await live.progress()
        return run.id


@asynccontextmanager
async def site(address: str, file: Path, **more: Any) -> AsyncIterator[Site]:
    gates.clear()
    acted.clear()
    turns.clear()
    async with TCPProxy(urlsplit(address).port or 5432) as way:
        one = Site(address, file, way, **more)
        try:
            await one.centre.boot()
            one.centre.engine.waking.suspend_grace_s = 60
            one.centre.recovery.start()
            await one.boot_edge()
            yield one
        finally:
            await one.edge.engine.close()
            await one.centre.engine.close()
            assert not one.edge.failures + one.centre.failures
