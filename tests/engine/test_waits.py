"""Runs that wait: they leave memory, come back for a time or a signal, and lose neither."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from durable_endpoints import (
    AlreadyAnswered,
    RunEnded,
    SignalRefused,
    SignalTimeout,
    current_run,
    durable,
    now,
    sleep,
    sleep_until,
    step,
    wait_for_signal,
)
from durable_endpoints.engine.engine import Engine
from durable_endpoints.testing import TestClock
from tests.engine.worlds import PATIENCE_S, World, play, world


async def until_status(one: World, run_id: str, status: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            record = await one.store.get(run_id)
            if record is not None and record.status == status and run_id not in one.engine.runs:
                return
            await asyncio.sleep(0.002)


async def until_waiting(one: World, run_id: str) -> None:
    """Wait until a run in memory has come to a wait."""
    async with asyncio.timeout(PATIENCE_S):
        while not one.engine.runs[run_id].waits.open:
            await asyncio.sleep(0.001)


@durable
async def naps(seconds: float) -> list[str]:
    before = await step.run("before", lambda: "before")
    began = now()
    await sleep(seconds)
    assert now() - began >= timedelta(seconds=seconds)
    return [before, await step.run("after", lambda: "after")]


@durable
async def asks(name: str, timeout: float | None = None) -> Any:
    first = await step.run("ask", lambda: "asked")
    try:
        return [first, await wait_for_signal(name, timeout=timeout)]
    except SignalTimeout as error:
        return [first, f"timeout {error.name}"]


def test_a_sleep_in_memory_ends_never_early() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(naps, 0.05)
        assert await run.result() == ["before", "after"]

    play(scenario)


def test_a_sleeping_run_leaves_memory_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TestClock()  # on a busy machine a short sleep is over before anybody has looked
    monkeypatch.setattr("tests.engine.worlds.Engine", partial(Engine, clock=clock))

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(naps, 3600)
        await until_status(one, run.id, "suspended")
        record = await one.store.get(run.id)
        assert record is not None
        assert record.wake_at_ms is not None
        assert "timer" in (record.waiting or "")
        clock.advance(seconds=3600)
        ended = await one.ended(run.id)
        assert await ended.result() == ["before", "after"]

    play(scenario)


def test_a_sleep_goes_on_while_no_process_is_there() -> None:
    async def main() -> None:
        async with world() as one:
            run = await one.start(naps, 0.2)
            await one.idle()
            await one.crash()
            await asyncio.sleep(0.25)
            await one.boot()
            ended = await one.ended(run.id)
            assert await ended.result() == ["before", "after"]

    asyncio.run(main())


def test_sleep_until_a_time_that_is_over_is_no_wait() -> None:
    @durable
    async def late() -> str:
        await sleep_until(datetime.now(UTC) - timedelta(days=1))
        return "done"

    async def scenario(one: World) -> None:
        assert await (await one.start(late)).result() == "done"

    play(scenario)


@pytest.mark.parametrize("grace_s", [0, 60])
def test_a_signal_answers_a_wait(grace_s: float) -> None:
    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = grace_s
        run = await one.start(asks, "go")
        if not grace_s:
            await until_status(one, run.id, "suspended")
        await run.signal("go", {"ok": True})
        ended = await one.ended(run.id)
        assert await ended.result() == ["asked", {"ok": True}]

    play(scenario)


def test_a_signal_that_comes_before_the_wait_is_kept_over_a_crash() -> None:
    gate = asyncio.Event()

    @durable
    async def slow() -> Any:
        await gate.wait()
        return await wait_for_signal("go")

    async def main() -> None:
        async with world() as one:
            run = await one.start(slow)
            await run.signal("go", 7, signal_id="one")
            await one.crash()
            await one.boot()
            gate.set()
            assert await (await one.ended(run.id)).result() == 7

    asyncio.run(main())


def test_one_signal_id_is_one_signal() -> None:
    @durable
    async def twice() -> list[Any]:
        return [await wait_for_signal("go"), await wait_for_signal("go")]

    async def scenario(one: World) -> None:
        run = await one.start(twice)
        await run.signal("go", 1, signal_id="a")
        await run.signal("go", 1, signal_id="a")
        await run.signal("go", 2, signal_id="b")
        assert await (await one.ended(run.id)).result() == [1, 2]

    play(scenario)


def test_a_second_answer_to_a_one_answer_wait_is_refused_with_the_first() -> None:
    @durable
    async def once() -> Any:
        answer = await wait_for_signal("go", once=True)
        await wait_for_signal("end")
        return answer

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(once)
        await until_status(one, run.id, "suspended")
        await run.signal("go", "first")
        await until_status(one, run.id, "suspended")
        with pytest.raises(AlreadyAnswered) as refused:
            await run.signal("go", "second")
        assert b"first" in refused.value.answer
        await run.signal("end")
        assert await (await one.ended(run.id)).result() == "first"
        with pytest.raises(AlreadyAnswered):
            await run.signal("go", "third")
        with pytest.raises(RunEnded):
            await run.signal("other", "fourth")

    play(scenario)


@pytest.mark.parametrize("grace_s", [0, 60])
def test_data_of_another_type_is_refused_to_its_sender(grace_s: float) -> None:
    @durable
    async def typed() -> Any:
        return await wait_for_signal("number", type=int)

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = grace_s
        run = await one.start(typed)
        if not grace_s:
            await until_status(one, run.id, "suspended")
        else:
            await until_waiting(one, run.id)
        with pytest.raises(SignalRefused):
            await run.signal("number", "many")
        await run.signal("number", 3)
        assert await (await one.ended(run.id)).result() == 3

    play(scenario)


def test_a_wait_times_out_and_stays_timed_out() -> None:
    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(asks, "never", 0.1)
        ended = await one.ended_for_good(run.id)
        assert await ended.result() == ["asked", "timeout never"]

    play(scenario)


def test_parallel_waits_are_answered_in_any_order() -> None:
    @durable
    async def both() -> list[Any]:
        return list(await asyncio.gather(wait_for_signal("a"), wait_for_signal("b"), sleep(0.05)))

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(both)
        await run.signal("b", 2)
        await until_status(one, run.id, "suspended")
        await run.signal("a", 1)
        ended = await one.ended_for_good(run.id)
        assert await ended.result() == [1, 2, None]

    play(scenario)


def test_a_suspended_run_can_be_cancelled() -> None:
    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(asks, "never")
        await until_status(one, run.id, "suspended")
        await run.cancel()
        record = await one.store.get(run.id)
        assert record is not None
        assert record.status == "cancelled"

    play(scenario)


def test_a_step_at_work_keeps_the_run_in_memory() -> None:
    @durable
    async def busy() -> list[Any]:
        async def work() -> int:
            await asyncio.sleep(0.15)
            return 1

        return list(await asyncio.gather(step.run("work", work), wait_for_signal("go")))

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(busy)
        await until_status(one, run.id, "suspended")
        steps = [e.key for e in await one.entries(run.id) if e.kind.name == "STEP"]
        assert len(steps) == 1
        await run.signal("go", 2)
        assert await (await one.ended_for_good(run.id)).result() == [1, 2]

    play(scenario)


def test_a_child_run_is_awaited_by_a_suspended_parent() -> None:
    @durable
    async def child(seconds: float) -> str:
        await sleep(seconds)
        return "child's"

    @durable
    async def parent() -> str:
        begun = await current_run().spawn(child, 0.3)
        return "parent of " + str(await begun)

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(parent)
        assert await (await one.ended_for_good(run.id)).result() == "parent of child's"

    play(scenario)


def test_cancelling_a_parent_cancels_its_children() -> None:
    @durable
    async def child() -> None:
        await wait_for_signal("never")

    @durable
    async def parent() -> None:
        await (await current_run().spawn(child))

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(parent)
        await until_status(one, run.id, "suspended")
        await run.cancel()
        await one.ended_for_good(run.id)
        from durable_endpoints.stores.protocol import Query

        async with asyncio.timeout(PATIENCE_S):
            while {r.status for r in await one.store.list(Query())} != {"cancelled"}:
                await asyncio.sleep(0.005)

    play(scenario)


def test_i17_coming_to_the_same_wait_after_a_crash_is_no_progress() -> None:
    """What ends the process once its wait is over would otherwise be tried again for ever."""

    async def attempts(one: World, run_id: str) -> int:
        record = await one.store.get(run_id)
        assert record is not None
        return record.attempts

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 60  # the process ends before the run is suspended
        run = await one.start(asks, "go")
        await until_waiting(one, run.id)
        await one.idle()
        await one.crash()
        await one.boot()
        await until_status(one, run.id, "suspended")
        assert await attempts(one, run.id) == 1
        await (await one.run_of(run.id)).signal("go", None)
        assert await (await one.ended(run.id)).result() == ["asked", None]
        assert await attempts(one, run.id) == 0

    play(scenario)
