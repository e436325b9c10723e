"""Streams with on_interrupt="hold": nothing of them is given on before all of it is there."""

from __future__ import annotations

from collections.abc import AsyncIterator

from durable_endpoints import durable, emit, step, wait_for_signal
from tests.engine.worlds import World, play


@step(on_interrupt="hold")
async def breaks() -> AsyncIterator[int]:
    yield 1
    yield 2
    raise KeyError("three")


@durable
async def shows_what_it_got() -> list[int]:
    got: list[int] = []
    try:
        async for number in breaks():
            emit(f"got {number}")
            got.append(number)
    except KeyError:
        emit("broken")
    await wait_for_signal("go")
    return got


def test_a_held_stream_that_failed_gives_nothing_at_a_replay_either() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(shows_what_it_got)
        while (await one.run_of(run.id)).status != "suspended":
            one.engine.waking.suspend_grace_s = 0
            await one.idle()
        await one.crash()
        await one.boot()
        await (await one.run_of(run.id)).signal("go", None)
        ended = await one.ended_for_good(run.id)
        assert ended.status == "completed"
        assert await ended.result() == []
        assert [event.payload async for event in ended.events()] == [b"data: broken\n\n"]

    play(scenario)
