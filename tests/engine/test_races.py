"""Races of cancel, signal, timeout, suspension and completion: one of them wins, none is lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from durable_endpoints import (
    RunEnded,
    current_run,
    durable,
    effect,
    sleep,
    step,
    wait_for_signal,
)
from durable_endpoints.records import TERMINAL_KINDS, Kind
from durable_endpoints.stores.protocol import Query, WaitQuery
from durable_endpoints.testing import TestClock
from tests.engine.hopping import HoppingStore, HoppingWorld, play
from tests.engine.races import PROMPT_S, calls, ended, note, until
from tests.engine.test_waits import until_status


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


# --- children


@durable
async def child_of_seconds(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "child's"


@durable
async def waits_for_child(seconds: float) -> str:
    begun = await current_run().spawn(child_of_seconds, seconds)
    return str(await begun)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.02, 0.021, 0.1])
def test_a_parent_that_suspends_as_its_child_ends_is_told(seconds: float) -> None:
    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(waits_for_child, seconds)
        assert await (await ended(one, run.id)).result() == "child's"

    play(scenario)


def test_a_child_that_has_just_begun_is_cancelled_with_its_parent() -> None:
    @durable
    async def child() -> None:
        await wait_for_signal("never")

    @durable
    async def parent() -> None:
        await current_run().spawn(child)
        raise RuntimeError("at once")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(parent)
        await ended(one, run.id)
        found: dict[str, str] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(PROMPT_S):
                while found.get("child") != "cancelled":
                    await asyncio.sleep(0.001)
                    rows = await one.store.list(Query())
                    found = {row.name.rpartition(".")[2]: row.status for row in rows}
        assert found == {"parent": "failed", "child": "cancelled"}

    play(scenario)


# --- waits that were given up


def test_a_wait_that_was_given_up_holds_nobody_up() -> None:
    @durable
    async def first_of_two() -> Any:
        await sleep(0)
        tasks = [asyncio.create_task(wait_for_signal(name)) for name in ("a", "b")]
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return [done.pop().result(), await wait_for_signal("c")]

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(first_of_two)
        await until_status(one, run.id, "suspended")
        await run.signal("b", 1)
        await until_status(one, run.id, "suspended")
        began = time.monotonic()
        waits = await one.store.waits(WaitQuery(run_id=run.id))
        assert [wait.name for wait in waits] == ["c"]
        await run.signal("c", 2)
        assert await (await ended(one, run.id)).result() == [1, 2]
        assert time.monotonic() - began < PROMPT_S

    play(scenario)


# --- one run, taken up twice


def test_a_timer_and_a_signal_at_one_moment_take_a_run_up_once() -> None:
    @durable
    async def both() -> list[Any]:
        return list(await asyncio.gather(sleep(0.1), wait_for_signal("go"), counted()))

    async def counted() -> None:
        if not current_run().replaying:
            note("fresh")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(both)
        await until_status(one, run.id, "suspended")
        await asyncio.sleep(0.1)
        told = await asyncio.gather(
            one.engine.waking.wake_due(), run.signal("go", 1), one.engine.waking.wake_due(),
            run.signal("later", 1), return_exceptions=True,
        )  # fmt: skip
        assert not any(isinstance(answer, BaseException) for answer in told[:3]), told
        # The last one may come when "go" has let the run end.
        assert told[3] is None or isinstance(told[3], RunEnded), told
        assert await (await ended(one, run.id)).result() == [None, 1, None]
        record = await one.store.get(run.id)
        assert record is not None
        assert record.epoch <= 4

    play(scenario)


@pytest.mark.parametrize("saga", [False, True])
def test_two_cancels_of_a_suspended_run_are_one(saga: bool) -> None:
    async def undo(what: str) -> None:
        note("undo", what)

    @effect(compensate=undo)
    async def book(what: str) -> None:
        note("book", what)

    @durable
    async def waits() -> None:
        if saga:
            await book("flight")
        await wait_for_signal("never")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(waits)
        await until_status(one, run.id, "suspended")
        await asyncio.gather(run.cancel(), run.cancel(), (await one.run_of(run.id)).cancel())
        last = await ended(one, run.id)
        assert last.status == "cancelled"
        entries = await one.entries(run.id)
        assert sum(entry.kind in TERMINAL_KINDS for entry in entries) == 1
        assert calls.get("undo", []) == ["flight"] * saga

    play(scenario)


@pytest.mark.parametrize("seed", range(20))
def test_a_cancel_and_a_signal_of_a_suspended_run(seed: int) -> None:
    @durable
    async def waits() -> Any:
        return await wait_for_signal("go")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(waits)
        await until_status(one, run.id, "suspended")
        told = await asyncio.gather(run.cancel(), run.signal("go", 1), return_exceptions=True)
        assert told[0] is None
        assert told[1] is None or isinstance(told[1], RunEnded), told
        last = await ended(one, run.id)
        assert last.status in ("cancelled", "completed")

    chance = random.Random(seed)
    play(scenario, HoppingStore(lambda _: (chance.randrange(6), chance.randrange(6))))


# --- cancel while the run is being taken up


@pytest.mark.parametrize("hops", range(12))
def test_a_cancel_while_a_run_is_taken_up_is_obeyed(hops: int) -> None:
    async def undo(what: str) -> None:
        note("undo", what)

    @effect(compensate=undo)
    async def book(what: str) -> None:
        note("book", what)

    clock = TestClock()  # on a busy machine a short sleep is over before anybody has looked

    @durable
    async def saga() -> str:
        await book("flight")
        await sleep(3600)
        await asyncio.sleep(3600)  # until it is cancelled
        return "done"

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(saga)
        await until_status(one, run.id, "suspended")
        clock.advance(seconds=3600)
        waking = asyncio.create_task(one.engine.waking.wake_due())
        for _ in range(hops):
            await asyncio.sleep(0)
        await (await one.run_of(run.id)).cancel()
        await waking
        last = await ended(one, run.id)
        assert last.status == "cancelled"
        assert calls["undo"] == ["flight"]

    play(scenario, clock=clock)


# --- a step in a thread


def test_a_step_in_a_thread_keeps_the_run_in_memory() -> None:
    begun = threading.Event()

    @step
    def slow() -> int:
        begun.set()
        time.sleep(0.1)
        return note("slow")

    @durable
    async def handler() -> list[Any]:
        return list(await asyncio.gather(asyncio.to_thread(slow), wait_for_signal("go")))

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await until(begun.is_set)
        await asyncio.sleep(0.05)  # it would be suspended now, if the step were not at work
        await run.signal("go", 1)
        assert await (await ended(one, run.id)).result() == [1, 1]
        kinds = [entry.kind for entry in await one.entries(run.id)]
        assert kinds.count(Kind.STEP) == 1
        assert len(calls["slow"]) == 1

    play(scenario)


# --- one slow run, and its neighbours


def test_a_run_that_is_slow_to_come_back_holds_no_other_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Who waits for the slow one waits for longer than this test has patience.
    monkeypatch.setattr("durable_endpoints.engine.recovery.RECOVERY_PATIENCE_S", 3600)
    clock = TestClock()  # or both came back at once, on a machine that stood still
    gate = asyncio.Event()

    @durable
    async def slow_to_return() -> None:
        if note("slow") > 1:
            await gate.wait()
        await sleep(3600)

    @durable
    async def quick() -> str:
        await sleep(7200)
        return "woken"

    async def scenario(one: HoppingWorld) -> None:
        slow, run = await one.start(slow_to_return), await one.start(quick)
        for waiting in (slow, run):
            await until_status(one, waiting.id, "suspended")
        clock.advance(seconds=3600)
        await until(lambda: len(calls["slow"]) == 2)
        clock.advance(seconds=3600)
        assert await (await ended(one, run.id)).result() == "woken"
        assert len(calls["slow"]) == 2
        gate.set()
        await slow.cancel()

    play(scenario, clock=clock)


def test_a_timeout_of_a_run_ends_also_what_is_started_without_a_request() -> None:
    @durable(timeout=0.2)
    async def handler() -> None:
        await wait_for_signal("never")

    @durable
    async def parent() -> None:
        await (await current_run().spawn(handler))

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(parent)
        assert (await ended(one, run.id)).status == "failed"

    play(scenario)
