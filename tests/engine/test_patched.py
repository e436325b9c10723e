"""Changed code, and runs whose tasks are at work side by side when a crash cuts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from durable_endpoints import durable, emit, patched, sleep, step
from tests.engine.worlds import PATIENCE_S, World, world

Body = Callable[["Code"], Awaitable[Any]]


class Code:
    """What is deployed: the code before its change, at first, and then that behind it."""

    def __init__(self) -> None:
        self.new = False
        self.gate = asyncio.Event()

    def patched(self) -> bool:
        return self.new and patched("change")

    async def stop(self) -> None:
        """Stand still until the process has ended."""
        if not self.new:
            await self.gate.wait()


async def make(what: str) -> str:
    return what


async def put(what: str) -> str:
    return await step.run(what, make, what)


@step(on_interrupt="resume")
async def counted(count: int, recorded: Sequence[int] = ()) -> AsyncIterator[int]:
    for number in range(len(recorded), count):
        yield number


async def two_lives(body: Body, entries: int) -> Any:
    """Return what a run makes of code that changes when so many of its entries are durable."""
    code = Code()

    @durable
    async def handler() -> Any:
        return await body(code)

    async with world() as one:
        run = await one.start(handler)
        await until_durable(one, run.id, entries)
        await one.crash()
        code.new = True
        await one.boot()
        return await (await one.ended_for_good(run.id)).result()


async def until_durable(one: World, run_id: str, entries: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(await one.entries(run_id)) < entries:
            await asyncio.sleep(0.001)


# --- what the first process had not done: the new way


class Meeting:
    """One task has begun a call; another one has got to where the code changes."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.begun, self.there = asyncio.Event(), asyncio.Event()

    def begin(self) -> None:
        """Say so when the call that is made next has begun."""
        asyncio.get_running_loop().call_soon(self.begun.set)

    async def go(self) -> bool:
        async def work() -> None:
            if not self.code.new:
                await self.begun.wait()

        await step.run("first", work)
        self.there.set()
        await self.code.stop()
        return patched("change")


async def beside_a_sleep(code: Code, seconds: float) -> bool:
    async def second() -> None:
        meeting.begin()
        await sleep(seconds)

    meeting = Meeting(code)
    found, _ = await asyncio.gather(meeting.go(), second())
    return found


async def beside_a_completion(code: Code) -> bool:
    """One that came while the code was on its way to the change, and is delivered after it."""
    return await beside_a_sleep(code, 0.05)


async def before_a_neighbour_has_begun(code: Code) -> bool:
    """A call that was made before, which a replay has yet to come to."""
    return await beside_a_sleep(code, 0.3)


async def beside_an_item(code: Code) -> bool:
    """An item that another task's stream gave while the code was on its way to the change."""

    @step(on_interrupt="resume")
    async def items(recorded: Sequence[int] = ()) -> AsyncIterator[int]:
        meeting.begin()
        await meeting.there.wait()
        for number in range(len(recorded), 2):
            yield number

    async def second() -> None:
        async for _ in items():
            await code.stop()

    meeting = Meeting(code)
    found, _ = await asyncio.gather(meeting.go(), second())
    return found


@pytest.mark.parametrize(
    ("body", "entries"),
    [(beside_a_completion, 5), (before_a_neighbour_has_begun, 4), (beside_an_item, 5)],
)
def test_a_run_that_was_not_past_a_change_goes_the_new_way(body: Body, entries: int) -> None:
    assert asyncio.run(two_lives(body, entries)) is True


# --- what it had done: the old way


async def in_its_task(code: Code) -> list[str]:
    async def first() -> str:
        before = await put("first")
        way = await put("new") if code.patched() else ""
        after = await put("after")
        await code.stop()
        return before + way + after

    return list(await asyncio.gather(first(), put("second")))


async def in_a_task_of_its_task(code: Code) -> list[str]:
    async def first() -> str:
        before = await put("first")
        way = await put("new") if code.patched() else ""
        [after] = await asyncio.gather(put("after"))
        await code.stop()
        return before + way + after

    return list(await asyncio.gather(first(), put("second")))


async def by_what_another_task_made_of_it(code: Code) -> list[str]:
    async def first() -> str:
        before = await put("first")
        way = await put("new") if code.patched() else ""
        told.put_nowait("after")
        await code.stop()
        return before + way

    async def second() -> str:
        return await put(await told.get())

    told: asyncio.Queue[str] = asyncio.Queue()
    before, after = await asyncio.gather(first(), second())
    return [before + after, await put("second")]


async def by_what_it_told(code: Code) -> list[str]:
    async def first() -> str:
        before = await put("first")
        way = await put("new") if code.patched() else ""
        emit("after")
        await code.stop()
        return before + way + "after"

    return list(await asyncio.gather(first(), put("second")))


async def by_the_item_it_asked_for(code: Code) -> list[str]:
    async def first() -> str:
        found = ""
        async for number in counted(2):
            if number == 0:
                found += await put("new") if code.patched() else "first"
            else:
                await code.stop()
                found += "after"
        return found

    return list(await asyncio.gather(first(), put("second")))


async def alone(code: Code) -> list[str]:
    before = await put("first")
    way = await put("new") if code.patched() else ""
    after = await put("after")
    await code.stop()
    return [before + way + after, await put("second")]


@pytest.mark.parametrize(
    ("body", "entries"),
    [
        (in_its_task, 5), (in_a_task_of_its_task, 5), (by_what_another_task_made_of_it, 4),
        (by_what_it_told, 5), (by_the_item_it_asked_for, 6), (alone, 3),
    ],
)  # fmt: skip
def test_a_run_that_was_past_a_change_goes_on_as_it_was(body: Body, entries: int) -> None:
    assert asyncio.run(two_lives(body, entries)) == ["firstafter", "second"]
