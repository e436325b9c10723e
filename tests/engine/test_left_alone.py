"""Nobody is left waiting: a parent whose child is damaged, a reader, a fork that was cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from durable_endpoints import (
    Overloaded,
    RunDeleted,
    RunFailed,
    RunNotFound,
    current_run,
    durable,
    wait_for_signal,
)
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run, begin_call
from durable_endpoints.limits import CHILD_RECHECK_S
from durable_endpoints.records import Frame
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query, StoredFrame
from durable_endpoints.testing import TestClock
from tests.engine.giving_up import gives_up
from tests.engine.worlds import PATIENCE_S, World, play, world

DAMAGED = "damaged: a frame's checksum does not match its bytes"


@durable
async def succeeds() -> str:
    return "done"


@durable
async def fails() -> str:
    raise ValueError("no")


@durable
async def begins(child: str) -> str:
    run = await current_run().spawn({"succeeds": succeeds, "fails": fails}[child])
    await wait_for_signal("go on")
    try:
        return str(await run)
    except RunFailed as error:
        return str(error)


async def damage_child(one: World, store: MemoryStore, parent: Run) -> str:
    """Damage the last frame of a run's child, which is at its end; return its id."""
    while True:
        rows = await store.list(Query(("completed", "failed"), parent=parent.id))
        if rows and rows[0].run_id not in one.engine.runs:
            break
        await one.idle()
    frames = store._frames[rows[0].run_id]
    frames[-1] = replace(frames[-1], data=bytes(len(frames[-1].data)))
    return rows[0].run_id


@pytest.mark.parametrize(("child", "told"), [("succeeds", DAMAGED), ("fails", "ValueError: no")])
def test_i20_who_waits_for_a_child_whose_end_is_damaged_is_told(child: str, told: str) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with asyncio.timeout(PATIENCE_S), world(store) as one:
            run = await one.start(begins, child)
            child_id = await damage_child(one, store, run)
            await run.signal("go on")
            assert await run.result() == f"run {child_id} failed: {told}"

    asyncio.run(main())


def test_i20_a_suspended_run_learns_that_its_childs_end_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = TestClock()
    monkeypatch.setattr("tests.engine.worlds.Engine", partial(Engine, clock=clock))

    async def main() -> None:
        store = MemoryStore()
        async with asyncio.timeout(PATIENCE_S), world(store) as one:
            run = await one.start(begins, "succeeds")
            child_id = await damage_child(one, store, run)
            one.engine.waking.suspend_grace_s = 0
            monkeypatch.setattr(one.engine.waking, "child_awaited", lambda *_: None)
            await run.signal("go on")  # nobody tells it
            while True:
                record = await store.get(run.id)
                assert record is not None
                if child_id in (record.waiting or "") and run.id not in one.engine.runs:
                    break
                await one.idle()
            monkeypatch.undo()
            clock.advance(seconds=CHILD_RECHECK_S)
            ended = await one.ended_for_good(run.id)
            assert await ended.result() == f"run {child_id} failed: {DAMAGED}"

    asyncio.run(main())


class Held(MemoryStore):
    """The answers to some reads are under way until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.holds: list[tuple[asyncio.Event, asyncio.Event]] = []

    def hold(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Hold one read; return what tells of it, and what lets it go."""
        self.holds.append((asyncio.Event(), asyncio.Event()))
        return self.holds[-1]

    async def read(self, run_id: str, **where: Any) -> list[StoredFrame]:
        """See `Store.read`."""
        frames = await super().read(run_id, **where)
        if self.holds:
            reached, go = self.holds.pop(0)
            reached.set()
            await go.wait()
        return frames


@durable
async def asks() -> str:
    return str(await wait_for_signal("go"))


async def rest(one: World, principal: str) -> str:
    """Return the id of a principal's run that is suspended, and in nobody's memory."""
    one.engine.waking.suspend_grace_s = 0
    run_id = begin_call(one.engine, asks, (), {}, principal=principal).id
    while run_id in one.engine.runs:
        await one.idle()
    await one.crash()
    await one.boot()
    return run_id


@pytest.mark.parametrize("first", ["ann", "bob"])
def test_i18_a_look_of_another_principal_hides_from_nobody_that_a_run_went_on(first: str) -> None:
    async def main() -> None:
        store = Held()
        async with asyncio.timeout(PATIENCE_S), world(store) as one:
            run_id = await rest(one, "ann")
            engine = one.engine
            reached, go = store.hold()
            ann = asyncio.create_task(engine.observe(run_id, "ann"))
            await reached.wait()
            record = await store.get(run_id)
            assert record is not None and record.status == "suspended"
            assert engine.waking.take is not None
            await engine.waking.take([record])
            await engine.signal(engine.runs[run_id], "go", "on")
            while run_id in engine.runs or run_id in one.recovery._taken:
                await one.idle()
            reached, go_too = store.hold()
            bob = asyncio.create_task(engine.observe(run_id, "bob"))
            await reached.wait()
            for who, let_go in sorted([("ann", go), ("bob", go_too)], reverse=first == "bob"):
                let_go.set()
                await asyncio.wait([{"ann": ann, "bob": bob}[who]])
            assert (await ann).record.status == "completed"
            with pytest.raises(RunNotFound):
                await bob
            assert not engine._loads

    asyncio.run(main())


class Slow(MemoryStore):
    """Runs begin there when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`."""
        if any(frame.opening is not None for frame in batch):
            self.asked.set()
            await self.go.wait()
        return await super().append(batch)


@pytest.mark.parametrize("ends", ["request", "process"])
def test_i16_a_fork_whose_caller_has_gone_is_driven(ends: str) -> None:
    async def main() -> None:
        store = Slow()
        async with asyncio.timeout(PATIENCE_S), world(store) as one:
            run = await one.start(succeeds)
            assert await run.result() == "done"
            store.asked.clear()
            store.go.clear()
            forking = asyncio.create_task(run.fork(1))
            await store.asked.wait()
            forking.cancel()
            await asyncio.wait([forking])
            assert forking.cancelled()
            store.go.set()
            await one.idle()
            (forked,) = await store.list(Query(("running",)))
            if ends == "process":
                await one.crash()
                await one.boot()
            else:
                assert not one.engine.runs
                await one.recovery.sweep()
            assert await (await one.ended(forked.run_id)).result() == "done"

    asyncio.run(main())


class Dropped(MemoryStore):
    """Somebody else deletes a run just before its journal is looked at."""

    doomed: str | None = None

    async def read(self, run_id: str, **where: Any) -> list[StoredFrame]:
        """See `Store.read`."""
        if run_id == self.doomed:
            await self.delete(run_id)
        return await super().read(run_id, **where)


@pytest.mark.parametrize(
    "steer",
    [lambda run: run.retry(), lambda run: run.cancel(), lambda run: run.fork(1)],
    ids=["retry", "cancel", "fork"],
)
def test_i20_a_dead_run_that_is_deleted_while_it_is_steered_is_not_taken_for_damaged(
    steer: Callable[[Run], Awaitable[object]],
) -> None:
    async def main() -> None:
        store = Dropped()
        async with asyncio.timeout(PATIENCE_S), world(store) as one:
            run = await one.ended((await one.start(gives_up)).id)
            assert run.status == "dead"
            while one.engine.runs:
                await one.idle()
            store.doomed = run.id
            with pytest.raises(RunDeleted):
                await steer(run)
            assert not one.engine.runs

    asyncio.run(main())


def test_i14_names_of_signals_that_are_refused_or_taken_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_endpoints.engine.waits.SIGNALS_KEPT_MAX", 2)

    async def scenario(one: World) -> None:
        more = asyncio.Event()

        @durable
        async def asks_twice() -> list[str]:
            first = await wait_for_signal("go")
            await more.wait()
            return [first, await wait_for_signal("early")]

        run = await one.start(asks_twice)
        waits = one.engine.runs[run.id].waits
        while not waits.open:
            await one.idle()
        await run.signal("early", "kept")
        await run.signal("other")
        for number in range(10):
            with pytest.raises(Overloaded):
                await run.signal(f"name {number}")
        await run.signal("go", "taken")
        assert sorted(waits._kept) == ["early", "other"]
        more.set()
        assert await run.result() == ["taken", "kept"]
        assert sorted(waits._kept) == ["other"]

    play(scenario)
