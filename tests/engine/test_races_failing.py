"""Races of failing: attempts, effects, decisions and compensations, cut, cancelled and taken up."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints import (
    EffectAmbiguous,
    Escalate,
    RateLimit,
    Retry,
    RetryAfter,
    durable,
    effect,
    step,
    wait_for_signal,
)
from tests.engine.hopping import HoppingWorld, play
from tests.engine.races import calls, ended, note, until
from tests.engine.test_waits import until_status


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


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
        await until(lambda: one.engine.runs[run.id].waits.open)
        await run.cancel()
        await until(lambda: "second" in calls)
        await one.idle()
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
        await one.idle()
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
            await until(lambda: one.engine.runs[run.id].waits.open)
            await one.idle()
        await run.cancel()
        await until(lambda: len(calls.get("undo", ())) == 3)
        await one.idle()
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
