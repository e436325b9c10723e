"""A store whose every call takes a while, and worlds on it: what a thread hop opens, opens here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from durable_endpoints.clock import Clock
from durable_endpoints.engine import functions
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.recovery import Recovery
from durable_endpoints.records import Frame, RunRecord, WaitRecord
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query, StoredFrame, WaitQuery
from tests.engine.worlds import PATIENCE_S, World


class HoppingStore(MemoryStore):
    """The reference store; its calls give way to the loop before and after, as a thread does.

    `hops(what)` says how often; one call at a time of those that write, as one writer has it.
    """

    def __init__(self, hops: Callable[[str], tuple[int, int]] | None = None) -> None:
        super().__init__()
        chance = random.Random(0)
        self.hops = hops or (lambda _: (chance.randrange(4), chance.randrange(4)))
        self._writer: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _slowly(self, what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        before, after = self.hops(what)
        for _ in range(before):
            await asyncio.sleep(0)
        done = await work()
        for _ in range(after):
            await asyncio.sleep(0)
        return done

    async def _alone(self, what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        loop = asyncio.get_running_loop()
        if self._writer is None or self._loop is not loop:
            self._writer, self._loop = asyncio.Lock(), loop
        before, after = self.hops(what)
        async with self._writer:
            for _ in range(before):
                await asyncio.sleep(0)
            # A thread has it, whatever becomes of the caller meanwhile.
            done = await asyncio.shield(asyncio.ensure_future(work()))
        for _ in range(after):
            await asyncio.sleep(0)
        return done

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        found: frozenset[str] = await self._alone("append", lambda: MemoryStore.append(self, batch))
        return found

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        work = lambda: MemoryStore.claim(self, run_ids, now_ms, dead=dead)  # noqa: E731
        found: Sequence[RunRecord] = await self._alone("claim", work)
        return found

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        work = lambda: MemoryStore.read(  # noqa: E731
            self, run_id, seq=seq, offset=offset, limit_bytes=limit_bytes
        )
        found: list[StoredFrame] = await self._slowly("read", work)
        return found

    async def get(self, run_id: str) -> RunRecord | None:
        found: RunRecord | None = await self._slowly("get", lambda: MemoryStore.get(self, run_id))
        return found

    async def list(self, query: Query) -> list[RunRecord]:
        found: list[RunRecord] = await self._slowly("list", lambda: MemoryStore.list(self, query))
        return found

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        work = lambda: MemoryStore.waits(self, query)  # noqa: E731
        found: Sequence[WaitRecord] = await self._slowly("waits", work)
        return found


class Mortal:
    """One process's hands on a store: when they are dead, nothing comes of its calls any more."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                await asyncio.get_running_loop().create_future()
            result = await found(*args, **kwargs)
            if self.dead:  # done, and nobody heard of it
                await asyncio.get_running_loop().create_future()
            return result

        return call


class HoppingWorld(World):
    """A world whose engines have a grace and a clock of ours."""

    def __init__(
        self, store: MemoryStore | None = None, *, grace_s: float = 0, clock: Clock | None = None
    ) -> None:
        self.hands = Mortal(store or HoppingStore())
        super().__init__(store or self.hands._store)
        self.grace_s = grace_s
        self.clock = clock

    async def boot(self) -> None:
        self.hands = Mortal(self.hands._store)
        engine = self.engine = Engine(
            self.hands, on_failure=self.failures_append, suspend_grace_s=self.grace_s,
            clock=self.clock,
        )  # fmt: skip
        engine.drivers[functions.KIND] = lambda run, started, journal: functions.recover(
            engine, run, started, journal
        )
        await engine.open()
        self.recovery = Recovery(engine)
        self.recovery.start()

    async def crash(self) -> None:
        """End the process here: what is on its way to the store may get there, and no more."""
        engine = self.engine
        self.hands.dead = engine.leaving = True
        engine.log.failed = "the process is gone"
        tasks = {run.task for run in engine.runs.values() if run.task is not None} | engine.tasks
        if engine.log._writing is not None:
            tasks.add(engine.log._writing)
        for run in list(engine.runs.values()):
            run.fence("the process is gone")
        left = {task for task in tasks if task is not asyncio.current_task()}
        async with asyncio.timeout(PATIENCE_S):
            while left:  # some tidy up: they wait for the store once more
                for task in left:
                    task.cancel()
                _, left = await asyncio.wait(left, timeout=0.01)


def play(
    scenario: Callable[[HoppingWorld], Awaitable[None]], store: MemoryStore | None = None, *,
    grace_s: float = 0, clock: Clock | None = None,
) -> None:  # fmt: skip
    """Run a scenario in a world on a store whose calls take a while."""

    async def main() -> None:
        one = HoppingWorld(store, grace_s=grace_s, clock=clock)
        await one.boot()
        try:
            await scenario(one)
        finally:
            if not one.hands.dead:
                await one.engine.close()
        assert not one.failures

    asyncio.run(main())
