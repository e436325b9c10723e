"""Races of cancel, signal, timeout, suspension and completion: one of them wins, none is lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from durable_endpoints import (
    EffectAmbiguous,
    Escalate,
    RateLimit,
    Retry,
    RetryAfter,
    RunEnded,
    current_run,
    durable,
    effect,
    sleep,
    step,
    wait_for_signal,
)
from durable_endpoints.errors import RunCancelled
from durable_endpoints.records import TERMINAL_KINDS, Kind
from durable_endpoints.stores.protocol import Query, WaitQuery
from tests.engine.hopping import HoppingStore, HoppingWorld, play
from tests.engine.test_waits import until_status
from tests.engine.worlds import PATIENCE_S

calls: dict[str, list[Any]] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


def note(what: str, value: Any = None) -> int:
    calls.setdefault(what, []).append(value)
    return len(calls[what])


async def until(condition: Any, patience_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.001)


async def ended(one: HoppingWorld, run_id: str, patience_s: float = 5) -> Any:
    async with asyncio.timeout(patience_s):
        return await one.ended_for_good(run_id)


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
        await asyncio.sleep(0.1)
        found = {r.name.rpartition(".")[2]: r.status for r in await one.store.list(Query())}
        assert found == {"parent": "failed", "child": "cancelled"}

    play(scenario)


# --- effects between attempts


@pytest.mark.parametrize("policy", ["fail", "ask"])
def test_an_effect_that_waits_for_its_next_attempt_is_not_ambiguous(policy: str) -> None:
    @effect(retry=Retry(attempts=3, initial=0.01), on_ambiguous=policy)
    async def pay() -> str:
        if note("pay") == 1:
            raise RetryAfter(0.15)
        return "paid"

    @durable
    async def handler() -> str:
        try:
            return await pay()
        except EffectAmbiguous:
            return "ambiguous"

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        assert await (await ended(one, run.id)).result() == "paid"

    play(scenario)


def test_an_effect_that_a_person_lets_go_on_is_not_asked_about_again() -> None:
    hang = asyncio.Event()

    @effect(on_ambiguous="ask")
    async def pay() -> str:
        if note("pay") == 1:
            await asyncio.sleep(60)
        return "paid"

    @durable
    async def handler() -> str:
        return await pay()

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await until(lambda: "pay" in calls)
        await one.crash()
        hang.set()
        await one.boot()
        await until_status(one, run.id, "suspended")
        again = await one.run_of(run.id)
        await again.signal("pay", {"action": "retry"})
        assert await (await ended(one, run.id)).result() == "paid"
        assert len(calls["pay"]) == 2

    play(scenario)


# --- waits that were given up


def test_a_wait_that_was_given_up_holds_nobody_up() -> None:
    @durable
    async def first_of_two() -> Any:
        await sleep(0)
        tasks = [asyncio.create_task(wait_for_signal(name)) for name in ("a", "b")]  # type: ignore[var-annotated,arg-type]
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
        assert time.monotonic() - began < 5

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
        await asyncio.gather(
            one.engine.waking.wake_due(), run.signal("go", 1), one.engine.waking.wake_due(),
            run.signal("later", 1),
        )  # fmt: skip
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

    import random

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

    @durable
    async def saga() -> str:
        await book("flight")
        await sleep(0.05)
        await asyncio.sleep(0.05)
        return "done"

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(saga)
        await until_status(one, run.id, "suspended")
        await asyncio.sleep(0.06)
        waking = asyncio.create_task(one.engine.waking.wake_due())
        for _ in range(hops):
            await asyncio.sleep(0)
        await (await one.run_of(run.id)).cancel()
        await waking
        last = await ended(one, run.id)
        assert last.status == "cancelled"
        assert calls["undo"] == ["flight"]

    play(scenario)


# --- cancel and clean-up


def test_steps_after_a_cancel_are_replayed_after_a_crash() -> None:
    hang = asyncio.Event()

    @durable
    async def tidies_up() -> None:
        try:
            await wait_for_signal("never")
        finally:
            await step.run("first", lambda: note("first"))
            await step.run("second", tidy)

    async def tidy() -> int:
        if note("second") == 1:
            await asyncio.sleep(60)
        return 2

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(tidies_up)
        await asyncio.sleep(0.05)
        await run.cancel()
        await until(lambda: "second" in calls)
        await one.engine.log.flush()
        await one.crash()
        hang.set()
        await one.boot()
        last = await ended(one, run.id, 10)
        assert last.status == "cancelled"
        assert len(calls["first"]) == 1

    play(scenario, grace_s=60)


def test_a_cancel_during_the_compensations_lets_them_end() -> None:
    async def undo(what: str) -> None:
        note("undo", what)
        await asyncio.sleep(0.05)

    @effect(compensate=undo)
    async def book(what: str) -> None:
        note("book", what)

    @durable
    async def trip() -> None:
        for what in ("a", "b", "c"):
            await book(what)
        raise RuntimeError("no car")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(trip)
        await until(lambda: len(calls.get("undo", ())) == 2)
        await run.cancel()
        last = await ended(one, run.id, 10)
        assert last.status in ("cancelled", "failed")
        assert sorted(set(calls["undo"])) == ["a", "b", "c"]

    play(scenario)


# --- budgets


def test_a_crash_loop_that_somebody_retries_gets_a_new_budget() -> None:
    async def scenario(one: HoppingWorld) -> None:
        gate = asyncio.Event()

        @durable
        async def stuck() -> str:
            await step.run("s", lambda: 1)
            if not gate.is_set():
                await asyncio.sleep(3600)
            return "done"

        run = await one.start(stuck)
        await asyncio.sleep(0.02)
        await one.crash()
        for _ in range(7):
            await one.store.claim([run.id], 0)
        await one.boot()
        assert (await ended(one, run.id)).status == "dead"
        gate.set()
        again = await one.run_of(run.id)
        assert await again.retry()
        assert (await ended(one, run.id)).status == "completed"
        record = await one.store.get(run.id)
        assert record is not None
        assert record.error is None

    play(scenario)


def test_a_decision_gives_a_new_budget_also_after_a_crash() -> None:
    @step(retry=Retry(attempts=3, initial=0.01, jitter=0))
    async def odd() -> str:
        number = note("odd")
        if number == 3:
            raise Escalate("look")
        if number < 6:
            raise ConnectionError(str(number))
        return "done"

    @durable
    async def handler() -> str:
        return await odd()

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await until_status(one, run.id, "suspended")
        await until(lambda: len(calls["odd"]) == 3)
        await until_status(one, run.id, "suspended")
        await (await one.run_of(run.id)).signal("odd", {"action": "retry"})
        assert await (await ended(one, run.id)).result() == "done"

    play(scenario)
    play(scenario, grace_s=60) if False else None


# --- a step in a thread


def test_a_step_in_a_thread_keeps_the_run_in_memory() -> None:
    @step
    def slow() -> int:
        time.sleep(0.1)
        return note("slow")

    @durable
    async def handler() -> list[Any]:
        return list(await asyncio.gather(asyncio.to_thread(slow), wait_for_signal("go")))

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await asyncio.sleep(0.05)
        await run.signal("go", 1)
        assert await (await ended(one, run.id)).result() == [1, 1]
        kinds = [entry.kind for entry in await one.entries(run.id)]
        assert kinds.count(Kind.STEP) == 1
        assert len(calls["slow"]) == 1

    play(scenario)


# --- one slow run, and its neighbours


def test_a_run_that_is_slow_to_come_back_holds_no_other_up() -> None:
    @durable
    async def slow_to_return(seconds: float) -> None:
        if note("slow") > 1:
            await asyncio.sleep(3)
        await sleep(seconds)

    @durable
    async def quick(seconds: float) -> float:
        await sleep(seconds)
        return one_time()

    def one_time() -> float:
        return time.time()

    async def scenario(one: HoppingWorld) -> None:
        slow = await one.start(slow_to_return, 0.3)
        began = time.time()
        run = await one.start(quick, 1.2)
        woken = await (await ended(one, run.id)).result()
        assert woken - began - 1.2 < 1
        await slow.cancel()

    play(scenario)


def test_result_of_cancelled() -> None:
    assert RunCancelled


@pytest.mark.parametrize("suspended", [True, False])
def test_a_crash_half_way_through_undoing_a_cancelled_run(suspended: bool) -> None:
    hang = asyncio.Event()

    async def undo(what: str) -> None:
        note("undo", what)
        if what == "a" and not hang.is_set():
            await asyncio.sleep(60)

    @effect(compensate=undo)
    async def book(what: str) -> None:
        note("book", what)

    @durable
    async def trip() -> None:
        for what in ("a", "b", "c"):
            await book(what)
        await wait_for_signal("never")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(trip)
        if suspended:
            await until_status(one, run.id, "suspended")
        else:
            await until(lambda: len(calls.get("book", ())) == 3)
            await one.engine.log.flush()
        await run.cancel()
        await until(lambda: len(calls.get("undo", ())) == 3)
        await one.engine.log.flush()
        await one.crash()
        hang.set()
        await one.boot()
        last = await ended(one, run.id)
        assert last.status == "cancelled"
        assert calls["undo"] == ["c", "b", "a", "a"]
        assert calls["book"] == ["a", "b", "c"]

    play(scenario, grace_s=0 if suspended else 60)


def test_an_effect_that_waits_for_its_rate_limit_has_not_begun() -> None:
    @effect(rate_limit=RateLimit("one-by-one", 1, per=0.3), on_ambiguous="fail")
    async def pay(number: int) -> int:
        return note("pay", number)

    @durable
    async def handler(number: int) -> int:
        return await pay(number)

    async def scenario(one: HoppingWorld) -> None:
        runs = [await one.start(handler, number) for number in range(3)]
        for run in runs:
            assert (await ended(one, run.id)).status == "completed"
        assert sorted(calls["pay"]) == [0, 1, 2]

    play(scenario)


@pytest.mark.parametrize("policy", ["fail", "ask"])
def test_an_effect_of_a_dead_run_that_is_retried_is_not_ambiguous(policy: str) -> None:
    @effect(retry=Retry(attempts=2, initial=0.01), on_ambiguous=policy)
    async def pay() -> int:
        if note("pay") < 4:
            raise ConnectionError("gone")
        return 1

    @durable
    async def handler() -> int:
        return await pay()

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        last = await ended(one, run.id)
        assert last.status == "dead"
        assert await last.retry()
        again = await ended(one, run.id)
        assert await again.result() == 1
        assert len(calls["pay"]) == 4

    play(scenario)


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


@pytest.mark.parametrize("crash", [False, True])
def test_what_a_sibling_does_while_a_failed_run_is_undone_is_undone_too(crash: bool) -> None:
    hang, slow = asyncio.Event(), asyncio.Event()

    async def undo(what: str) -> None:
        if what == "flight" and crash and not hang.is_set():
            note("hangs")
            await asyncio.sleep(60)
        note("undo", what)

    @effect(compensate=undo)
    async def book(what: str) -> None:
        note("begin", what)
        if what == "hotel":
            await slow.wait()
        note("book", what)

    async def fails() -> None:
        await until(lambda: "hotel" in calls["begin"])
        raise RuntimeError("no car")

    @durable
    async def trip() -> None:
        await book("flight")
        await asyncio.gather(step.run("fails", fails), book("hotel"))

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(trip)
        await until(lambda: "hotel" in calls.get("begin", ()))
        await asyncio.sleep(0.05)  # it has failed, and begins to be undone
        slow.set()
        if crash:
            await until(lambda: "hangs" in calls)
            await asyncio.sleep(0.05)
            await one.crash()
            hang.set()
            await one.boot()
        assert (await ended(one, run.id)).status == "failed"
        assert sorted(calls["undo"]) == sorted(set(calls["book"]))

    play(scenario)
