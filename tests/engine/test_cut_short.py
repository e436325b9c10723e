"""A request is cancelled from outside while its run ends: that goes on without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, durable, effect, step, wait_for_signal
from durable_endpoints.records import Frame, Kind
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import WaitQuery
from tests.engine.worlds import PATIENCE_S, World, play, world


def test_i16_a_run_whose_request_is_cancelled_while_it_is_undone_is_taken_up() -> None:
    calls: list[str] = []

    async def undo() -> None:
        calls.append("undo")
        if calls.count("undo") == 1:
            await asyncio.Event().wait()  # until somebody outside has had enough
        calls.append("undone")

    @effect(compensate=undo)
    async def book() -> None:
        calls.append("book")

    engine = Engine(MemoryStore())
    app = FastAPI()

    @app.post("/trip")
    @durable
    async def trip() -> None:
        await book()
        raise RuntimeError("no car")

    app.add_middleware(DurableMiddleware, engine=engine)

    async def main() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            asking = asyncio.create_task(client.post("/trip"))
            while "undo" not in calls:
                await asyncio.sleep(0.001)
            (run_id,) = engine.runs
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            shown = {"status": "running"}
            while shown["status"] == "running":
                await asyncio.sleep(0.01)
                shown = (await client.get(f"/_durable/runs/{run_id}")).json()
            assert shown["status"] == "failed"
        await engine.close()

    asyncio.run(main())
    assert calls == ["book", "undo", "undo", "undone"]


class SlowEnd(MemoryStore):
    """The end of a run waits there until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        if any(frame.status == "completed" for frame in batch):
            self.waiting.set()
            await self.go.wait()
        return await super().append(batch)


def test_a_run_whose_request_is_cancelled_at_its_last_commit_leaves_memory() -> None:
    async def main() -> None:
        store = SlowEnd()
        engine = Engine(store)
        app = FastAPI()

        @app.post("/quick")
        @durable
        async def quick() -> str:
            return "done"

        app.add_middleware(DurableMiddleware, engine=engine)
        transport = httpx.ASGITransport(app=app)
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            asking = asyncio.create_task(client.post("/quick"))
            await store.waiting.wait()
            (run_id,) = engine.runs
            asking.cancel()
            await asyncio.wait([asking])  # though the commit goes on
            assert asking.cancelled()
            store.go.set()
            while engine.runs:
                await asyncio.sleep(0.001)
            shown = (await client.get(f"/_durable/runs/{run_id}")).json()
            assert shown["status"] == "completed"
        await engine.close()

    asyncio.run(main())


def test_i8_what_others_have_seen_stays_of_a_run_that_is_left() -> None:
    """Left to the next process: its handler ends while the server stops, another one's goes on."""
    seen: list[str] = []

    async def make(what: str) -> str:
        return what

    async def scenario(one: World) -> None:
        stopping, made = asyncio.Event(), asyncio.Event()

        @durable
        async def leaves() -> None:
            waiting = asyncio.create_task(wait_for_signal("later"))
            await stopping.wait()
            seen.append(await step.run("make", make, "it"))
            made.set()
            assert not waiting.done()
            raise RuntimeError("frameworks cut their streams when the server stops")

        @durable
        async def goes_on() -> str:
            await made.wait()
            return await step.run("see", make, seen[0])

        left, other = await one.start(leaves), await one.start(goes_on)
        draining = asyncio.create_task(one.engine.drain(PATIENCE_S))
        while not one.engine.leaving:
            await asyncio.sleep(0)
        stopping.set()
        await draining
        assert await other.result() == "it"
        assert "0 make" in [entry.key for entry in await one.entries(left.id)]
        assert [wait.name for wait in await one.store.waits(WaitQuery("later"))] == ["later"]
        record = await one.store.get(left.id)
        assert record is not None and record.status == "running"  # the next process goes on

    play(scenario)


class Gated(MemoryStore):
    """Nothing becomes durable while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        await self.gate.wait()
        return await super().append(batch)


Begin = Callable[[World, Callable[[], Awaitable[None]]], Awaitable[asyncio.Task[object]]]


async def call(one: World, function: Callable[[], Awaitable[None]]) -> asyncio.Task[object]:
    """Begin a run as a call; return the task to cancel."""
    run = await one.start(durable(function))
    task = one.engine.runs[run.id].task
    assert task is not None
    return task


async def request(one: World, function: Callable[[], Awaitable[None]]) -> asyncio.Task[object]:
    """Begin a run as a request; return the task to cancel."""
    app = FastAPI()
    app.post("/trip")(durable(function))
    app.add_middleware(DurableMiddleware, engine=one.engine)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://test")
    return asyncio.create_task(client.post("/trip"))


@pytest.mark.parametrize("begin", [call, request])
def test_i8_what_others_have_seen_stays_of_a_run_whose_end_is_cut_short(begin: Begin) -> None:
    """Cut by somebody outside, while it is undone: it is undone by whoever takes it up again."""
    made: list[str] = []
    undone: list[str] = []

    async def make() -> str:
        made.append("it")
        return "it"

    async def say(what: str) -> str:
        return what

    async def undo() -> None:
        undone.append("it")

    @effect(compensate=undo)
    async def book() -> None: ...

    async def main() -> None:
        store, heard = Gated(), asyncio.Event()

        async def trip() -> None:
            await book()
            if not heard.is_set():
                store.gate.clear()
            await step.run("fill", say, "the batch that is under way")
            for _ in range(9):
                await asyncio.sleep(0)
            await step.run("make", make)
            heard.set()
            raise RuntimeError("no car")

        @durable
        async def listens() -> str:
            await heard.wait()
            return await step.run("see", say, made[0])

        async with world(store) as one:
            listening = await one.start(listens)
            asking = await begin(one, trip)
            async with asyncio.timeout(PATIENCE_S):
                await heard.wait()
                (cut,) = (run for run in one.engine.runs.values() if run.id != listening.id)
                while cut.cancellation.stage != "unwinding":
                    await asyncio.sleep(0)
                asking.cancel()
                while cut.fenced is None:
                    await asyncio.sleep(0)
                store.gate.set()
                assert await listening.result() == "it"
                while undone != ["it"]:
                    await one.recovery.sweep()
                    await asyncio.sleep(0.001)
            assert (await one.ended_for_good(cut.id)).status == "failed"
            assert made == ["it"]

    asyncio.run(main())


class Busy(MemoryStore):
    """Whatever waits for it does its next step so many turns before the end of each commit."""

    def __init__(self, early: int) -> None:
        super().__init__()
        self.early, self.commits = early, 0
        self.next = asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        for left in range(20, 0, -1):
            await asyncio.sleep(0)
            if left == self.early:
                self.next.set()
        self.commits += 1
        return await super().append(batch)


@pytest.mark.parametrize("early", range(1, 9))
def test_i8_what_a_run_did_while_its_server_was_drained_is_not_lost(early: int) -> None:
    """A run that is taken up meanwhile may have seen it, and its own commit comes later."""
    store, done = Busy(early), 0

    @durable
    async def works() -> None:
        nonlocal done
        while True:
            await step.run(f"step {done}", dict)
            done += 1
            await store.next.wait()
            store.next.clear()

    async def main() -> None:
        one = World(store)
        await one.boot()
        run = await one.start(works)
        async with asyncio.timeout(PATIENCE_S):
            while store.commits < 5:
                await asyncio.sleep(0)
            await one.engine.drain(0)
        kept = [entry for entry in await one.entries(run.id) if entry.kind == Kind.STEP]
        assert len(kept) == done
        await one.engine.close()
        assert not one.failures

    asyncio.run(main())
