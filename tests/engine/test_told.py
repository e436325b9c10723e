"""A handler is told of its run's cancellation when it is at rest: live as at every replay (I11)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from durable_endpoints import current_run, durable, effect, step
from durable_endpoints.records import Kind, RunRecord
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import PATIENCE_S, World, play, world


async def until_recorded(one: World, run_id: str, key: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not any(entry.key.endswith(key) for entry in await one.entries(run_id)):
            await asyncio.sleep(0.001)


async def ended(one: World, run_id: str) -> str:
    """Return what the run is, and why, once it is at its end or set aside."""
    run = await one.ended(run_id)
    record = await one.store.get(run.id)
    assert record is not None
    return f"{record.status} {record.error or ''}".strip()


async def turns() -> None:
    """What follows from a completion takes some turns of the loop."""
    for _ in range(4):
        await asyncio.sleep(0)


async def time() -> None:
    await asyncio.sleep(0.1)


async def stand() -> None:
    await asyncio.Event().wait()


async def clean() -> None:
    return None


class Trip:
    """A handler that cleans up when its run is cancelled; the first process gets no further."""

    def __init__(self, between: Callable[[], Awaitable[None]], *, shields: bool) -> None:
        self.between = between
        self.shields = shields
        self.life = 1
        self.at_first, self.at_second, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.undone = 0

    async def book(self) -> None:
        self.at_first.set()

    async def unbook(self) -> None:
        self.undone += 1

    async def second(self) -> None:
        self.at_second.set()
        await (stand() if self.life == 2 else self.go.wait())

    async def handler(self) -> None:
        await effect(compensate=self.unbook, name="book")(self.book)()
        await self.between()
        second = asyncio.create_task(step.run("second", self.second))
        try:
            await asyncio.shield(second)
            await step.run("third", stand)
        except asyncio.CancelledError:
            if self.shields:
                await second
            else:
                second.cancel()
            await step.run("clean", clean)
            if self.life == 1:
                await stand()
            raise

    async def play(self, one: World) -> str:
        """Cancel a run of it, which cleans up; return how it ends in another process."""

        @durable
        async def handler() -> None:
            await self.handler()

        run = await one.start(handler)
        await (self.at_first if self.between is turns else self.at_second).wait()
        await run.cancel()
        if self.shields:
            self.go.set()
        await until_recorded(one, run.id, " clean")
        await one.crash()
        self.life = 2
        await one.boot()
        return await ended(one, run.id)


@pytest.mark.parametrize("between", [turns, time])
@pytest.mark.parametrize("shields", [False, True])
def test_a_replay_tells_of_a_cancellation_where_it_was_told(
    between: Callable[[], Awaitable[None]], *, shields: bool
) -> None:
    """At the call that was at work, whatever came before it; what ended later is given on later."""

    async def scenario(one: World) -> None:
        trip = Trip(between, shields=shields)
        assert await trip.play(one) == "cancelled"
        assert trip.undone == 1

    play(scenario)


def test_what_was_done_is_undone_whose_call_was_cancelled_in_its_turn() -> None:
    """It was done with a step that failed, and its group was cancelled before it was given on."""
    life = 1
    undone: list[str] = []

    async def unbook(what: str) -> None:
        if life == 1:
            await asyncio.Event().wait()
        undone.append(what)

    async def scenario(one: World) -> None:
        go, booking = asyncio.Event(), []

        @step
        async def fail() -> None:
            await go.wait()
            raise ValueError("no car")

        @effect(compensate=unbook)
        async def book(what: str) -> None:
            booking.append(what)
            await go.wait()

        @durable
        async def handler() -> None:
            async with asyncio.TaskGroup() as group:
                for work in (fail(), *(book(what) for what in "abc")):
                    group.create_task(work)

        nonlocal life
        run = await one.start(handler)
        async with asyncio.timeout(PATIENCE_S):
            while len(booking) < 3:
                await asyncio.sleep(0.001)
            go.set()
            while not any(e.key.startswith("undo/") for e in await one.entries(run.id)):
                await asyncio.sleep(0.001)
        kinds = [entry.kind for entry in await one.entries(run.id)]
        assert kinds.count(Kind.UNDOABLE) == 3
        await one.crash()
        life = 2
        await one.boot()
        assert (await ended(one, run.id)).startswith("failed")

    play(scenario)
    assert undone == ["c", "b", "a"]


class Library(MemoryStore):
    """Looks runs up at once, or slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: str | None = None

    async def get(self, run_id: str) -> RunRecord | None:
        for _ in range(50 if run_id == self.slow else 0):
            await asyncio.sleep(0)
        return await super().get(run_id)


def test_a_child_that_is_looked_up_slowly_is_awaited_before_the_cancellation_all_the_same() -> None:
    life = 1
    begun: list[str] = []

    @durable
    async def child() -> None:
        return None

    @durable
    async def handler() -> None:
        try:
            spawned = await current_run().spawn(child)
            begun[:] = [spawned.id]
            if life == 1:
                await asyncio.Event().wait()
            await spawned
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if life == 1:
                await stand()
            await step.run("clean", clean)
            if life == 2:
                await stand()
            raise

    async def main() -> None:
        nonlocal life
        store = Library()
        async with world(store) as one:
            run = await one.start(handler)
            async with asyncio.timeout(PATIENCE_S):
                while (
                    not begun
                    or (kid := await store.get(begun[0])) is None
                    or kid.status != "completed"
                ):
                    await asyncio.sleep(0.001)
            await run.cancel()
            await one.crash()
            life = 2
            await one.boot()
            await until_recorded(one, run.id, " clean")
            await one.crash()
            life, store.slow = 3, begun[0]
            await one.boot()
            assert await ended(one, run.id) == "cancelled"

    asyncio.run(main())
