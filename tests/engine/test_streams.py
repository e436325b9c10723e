"""Stream steps that fail, and what a replay makes of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from durable_endpoints import Retry, durable, emit, step, wait_for_signal
from durable_endpoints.records import Kind
from tests.engine.worlds import PATIENCE_S, World, play


def shows(stream: Callable[[], AsyncIterator[int]]) -> Callable[[], Any]:
    """Return an endpoint that shows what it gets of a stream, and then waits."""

    async def endpoint() -> list[int]:
        got: list[int] = []
        try:
            async for number in stream():
                emit(f"got {number}")
                got.append(number)
        except KeyError:
            emit("broken")
        await wait_for_signal("go")
        return got

    endpoint.__qualname__ = f"shows_{stream.__name__}"
    return durable(endpoint)


@step(on_interrupt="hold")
async def held() -> AsyncIterator[int]:
    yield 1
    yield 2
    raise KeyError("three")


goes: dict[str, int] = {}


def mended(policy: str) -> Callable[[], Any]:
    """Return an endpoint with a stream that breaks twice behind its second item."""

    @step(name=policy, on_interrupt=policy, retry=Retry(attempts=3, initial=0.01))
    async def stream() -> AsyncIterator[int]:
        goes[policy] = goes.get(policy, 0) + 1
        yield 1
        yield 2
        if goes[policy] < 3:
            raise ConnectionError("it broke")
        yield 3

    stream.__name__ = f"mended_{policy}"
    return shows(stream)


@step(retry=Retry(attempts=3, initial=0.3))
async def late() -> AsyncIterator[int]:
    goes["late"] = goes.get("late", 0) + 1
    if goes["late"] < 2:
        raise ConnectionError("not yet")
    yield 1


HELD = shows(held)
LATE = shows(late)
MENDED = {policy: mended(policy) for policy in ("hold", "restart")}


async def result_after_a_crash(one: World, run_id: str) -> tuple[Any, list[bytes]]:
    """Kill the process where the run waits, and let it go on; return its result and events."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            record = await one.store.get(run_id)
            if record is not None and '"signal"' in (record.waiting or ""):
                break
            assert record is None or record.status in ("running", "suspended"), record.error
            await asyncio.sleep(0.001)
    await one.crash()
    await one.boot()
    await (await one.run_of(run_id)).signal("go", None)
    ended = await one.ended_for_good(run_id)
    assert ended.status == "completed"
    return await ended.result(), [event.payload async for event in ended.events()]


def test_a_held_stream_that_failed_gives_nothing_at_a_replay_either() -> None:
    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(HELD)
        assert await result_after_a_crash(one, run.id) == ([], [b"data: broken\n\n"])

    play(scenario)


@pytest.mark.parametrize("policy", MENDED)
def test_a_stream_that_breaks_is_begun_anew_by_its_retry(policy: str) -> None:
    goes.clear()

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(MENDED[policy])
        result, events = await result_after_a_crash(one, run.id)
        assert result == [1, 2, 3]
        assert goes == {policy: 3}
        whole = [b"data: got 1\n\n", b"data: got 2\n\n", b"data: got 3\n\n"]
        assert [event for event in events if event.startswith(b"data: got")][-3:] == whole

    play(scenario)


def test_a_crash_between_the_attempts_of_a_stream_is_no_interruption() -> None:
    goes.clear()

    async def scenario(one: World) -> None:
        run = await one.start(LATE)
        while not any(entry.kind == Kind.ATTEMPT for entry in await one.entries(run.id)):
            await asyncio.sleep(0.001)
        await one.crash()
        await one.boot()
        assert await result_after_a_crash(one, run.id) == ([1], [b"data: got 1\n\n"])

    play(scenario)
