"""One store, one process after another: an engine that can be made to vanish."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from durable_endpoints.engine import functions
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run, start
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.engine.recovery import Recovery
from durable_endpoints.records import Entry
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Store

PATIENCE_S = 20

# What a world stands on where a test names no store; see conftest.
new_store: Callable[[], Store] = MemoryStore


class World:
    """A store, the engine on it now, and what was executed by all engines so far."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or new_store()
        self.executed: Counter[str] = Counter()
        self.engine = Engine(self.store, on_failure=self.failures_append)
        self.failures: list[str] = []

    def failures_append(self, reason: str) -> None:
        self.failures.append(reason)

    async def boot(self) -> None:
        """Start a process: recover what the last one left."""
        if self.engine.is_open:
            await self.store.close()
        engine = self.engine = Engine(self.store, on_failure=self.failures_append)
        engine.drivers[functions.KIND] = lambda run, started, journal: functions.recover(
            engine, run, started, journal
        )
        await engine.open()
        self.recovery = Recovery(engine)
        await self.recovery.sweep()
        engine.spawn(engine.waking.watch())

    async def crash(self) -> None:
        """End the process: what is not durable is gone, nothing is said to anybody."""
        engine = self.engine
        engine.leaving = True
        tasks = [run.task for run in engine.runs.values() if run.task is not None]
        for run in list(engine.runs.values()):
            run.fence("the process is gone")
        for task in [*engine.tasks, *tasks]:
            task.cancel()
        waiting = [task for task in [*engine.tasks, *tasks] if task is not asyncio.current_task()]
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE_S)
        await engine.log.flush()

    async def idle(self) -> None:
        """Wait until the log has nothing to do."""
        log = self.engine.log
        while log._writing is not None or log._flush is not None:
            await log.flush()
        await asyncio.sleep(0)

    async def start(self, function: Callable[..., Any], *args: Any) -> Run:
        return await start(self.engine, function, *args)

    async def entries(self, run_id: str) -> list[Entry]:
        return await read_journal(self.store, run_id)

    async def run_of(self, run_id: str) -> Run:
        return Run(self.engine, await self.engine.observe(run_id))

    async def ended_for_good(self, run_id: str) -> Run:
        """Wait until the run is at its end, however often it is suspended before."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                record = await self.store.get(run_id)
                if record is not None and record.status not in ("running", "suspended"):
                    run = await self.run_of(run_id)
                    if run.status == record.status:
                        return run
                await asyncio.sleep(0.001)

    async def ended(self, run_id: str) -> Run:
        """Wait until the run is at its end, or parked."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                record = await self.store.get(run_id)
                if record is not None and record.status not in ("running", "suspended"):
                    run = await self.run_of(run_id)
                    if run.status == record.status:
                        return run
                await asyncio.sleep(0.001)


@asynccontextmanager
async def world(store: Store | None = None) -> AsyncIterator[World]:
    one = World(store)
    await one.boot()
    try:
        yield one
    finally:
        await one.engine.close()
        assert not one.failures


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world() as one:
            await scenario(one)

    asyncio.run(main())
