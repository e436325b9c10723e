"""Steps that fail: retries with the budget they had, effects once begun, what is undone."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from durable_endpoints import (
    EffectAmbiguous,
    Escalate,
    NonRetryableError,
    RateLimit,
    Retry,
    RetryAfter,
    RunFailed,
    durable,
    effect,
    idempotency_key,
    patched,
    step,
    wait_for_signal,
)
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.streams import Last
from durable_endpoints.records import Kind
from durable_endpoints.testing import TestClock
from tests.engine.test_waits import until_status
from tests.engine.worlds import PATIENCE_S, World, play, world

QUICK = Retry(attempts=3, initial=0.01, jitter=0)
calls: dict[str, list[Any]] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> TestClock:
    """Give the engines of a world a clock that a test sets."""
    made = TestClock()
    monkeypatch.setattr("tests.engine.worlds.Engine", partial(Engine, clock=made))
    return made


def note(what: str, value: Any = None) -> int:
    calls.setdefault(what, []).append(value)
    return len(calls[what])


@step(retry=QUICK)
async def flaky(fails: int) -> int:
    attempt = note("flaky")
    if attempt <= fails:
        raise ConnectionError(f"attempt {attempt}")
    return attempt


@durable
async def tries(fails: int) -> int:
    return await flaky(fails)


def test_a_step_is_attempted_again_until_it_succeeds() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(tries, 2)
        assert await run.result() == 3
        kinds = [entry.kind for entry in await one.entries(run.id)]
        assert kinds.count(Kind.ATTEMPT) == 2

    play(scenario)


def test_a_run_out_of_retries_is_dead_and_can_be_retried_from_the_failed_step() -> None:
    @durable
    async def works() -> list[Any]:
        first = await step.run("first", lambda: note("first"))
        return [first, await flaky(4)]

    async def scenario(one: World) -> None:
        run = await one.start(works)
        ended = await one.ended(run.id)
        assert ended.status == "dead"
        assert len(calls["flaky"]) == 3
        assert await ended.retry()
        again = await one.ended_for_good(run.id)
        assert again.status == "completed"
        assert await again.result() == [1, 5]
        assert len(calls["first"]) == 1

    play(scenario)


def test_a_fatal_error_is_not_tried_again() -> None:
    @step(retry=QUICK)
    async def wrong() -> None:
        note("wrong")
        raise NonRetryableError("the order does not exist")

    @durable
    async def handler() -> None:
        await wrong()

    async def scenario(one: World) -> None:
        await one.ended((await one.start(handler)).id)
        assert len(calls["wrong"]) == 1

    play(scenario)


def test_the_handler_may_catch_what_a_step_gave_up_on() -> None:
    @durable
    async def handler() -> str:
        try:
            await flaky(9)
        except ConnectionError as error:
            return f"caught {error}"
        return "?"

    async def scenario(one: World) -> None:
        assert await (await one.start(handler)).result() == "caught attempt 3"

    play(scenario)


def test_a_retry_budget_survives_a_crash(clock: TestClock) -> None:
    @step(retry=Retry(attempts=4, initial=60, factor=1, jitter=0))
    async def never() -> None:
        raise TimeoutError(f"attempt {note('never')}")

    @durable
    async def handler() -> None:
        await never()

    async def main() -> None:
        async with world() as one:
            run = await one.start(handler)
            await clock.skip(seconds=90, patience=PATIENCE_S)  # there is no third attempt yet
            kinds = [entry.kind for entry in await one.entries(run.id)]
            assert kinds.count(Kind.ATTEMPT) == len(calls["never"]) == 2
            await one.crash()
            await one.boot()
            await clock.skip(seconds=300, patience=PATIENCE_S)
            ended = await one.ended(run.id)
            assert ended.status == "dead"
            assert len(calls["never"]) == 4

    asyncio.run(main())


def test_a_long_wait_for_the_next_attempt_suspends_the_run(clock: TestClock) -> None:
    @step(retry=QUICK)
    async def busy() -> str:
        if note("busy") == 1:
            raise RetryAfter(3600)
        return "done"

    @durable
    async def handler() -> str:
        return await busy()

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(handler)
        await until_status(one, run.id, "suspended")
        clock.advance(seconds=3600)
        assert await (await one.ended(run.id)).result() == "done"
        assert len(calls["busy"]) == 2

    play(scenario)


def test_an_escalated_step_waits_for_a_person() -> None:
    @step(retry=QUICK)
    async def odd() -> str:
        if note("odd") < 3:
            raise Escalate("two invoices match")
        return "done"

    @durable
    async def handler() -> str:
        return await odd()

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(handler)
        for _ in range(2):
            await until_status(one, run.id, "suspended")
            await run.signal("odd", {"action": "retry"})
        assert await (await one.ended(run.id)).result() == "done"
        await one.crash()
        await one.boot()
        assert len(calls["odd"]) == 3

    play(scenario)


def test_a_person_can_give_the_result_or_refuse() -> None:
    @step
    async def plain() -> str:
        return "never called"

    @step(retry=QUICK)
    async def odd() -> str:
        raise Escalate("which one?")

    @durable
    async def handler() -> str:
        return await odd()

    async def scenario(one: World) -> None:
        run = await one.start(handler)
        await run.signal("odd", {"action": "result", "result": "the second"})
        assert await (await one.ended(run.id)).result() == "the second"
        run = await one.start(handler)
        await run.signal("odd", {"action": "fail"})
        with pytest.raises(RunFailed, match="which one"):
            await (await one.ended(run.id)).result()

    play(scenario)


# --- effects


@effect
async def charge(order: int) -> str:
    note("charge", idempotency_key())
    return f"charged {order}"


@durable
async def buys(order: int) -> str:
    await step.run("search", lambda: note("search"))
    return await charge(order)


def test_an_effect_begins_when_its_intent_is_durable_and_keeps_its_key() -> None:
    seen: list[int] = []

    @effect
    async def looks(store: Any, run_id: str) -> None:
        seen.append((await store.get(run_id)).last_seq)

    async def scenario(one: World) -> None:
        @durable
        async def handler(run_id: str | None = None) -> str:
            from durable_endpoints import current_run

            for number in range(5):
                await step.run("work", lambda number=number: number)
            own = current_run().id

            async def look() -> None:
                record = await one.store.get(own)
                assert record is not None
                seen.append(record.last_seq)

            await effect.run("look", look)
            return "done"

        run = await one.start(handler)
        assert await run.result() == "done"
        intent = next(e.seq for e in await one.entries(run.id) if e.kind == Kind.INTENT)
        assert seen[0] >= intent

    play(scenario)
    assert seen


def test_an_effect_cut_by_a_crash_is_begun_again_under_the_same_key() -> None:
    hang = asyncio.Event()

    @effect
    async def pay() -> str:
        note("pay", idempotency_key())
        if not hang.is_set():
            await asyncio.sleep(60)
        return "paid"

    @durable
    async def handler() -> str:
        return await pay()

    async def main() -> None:
        async with world() as one:
            run = await one.start(handler)
            async with asyncio.timeout(PATIENCE_S):
                while "pay" not in calls:
                    await asyncio.sleep(0.001)
            await one.crash()
            hang.set()
            await one.boot()
            assert await (await one.ended(run.id)).result() == "paid"
            assert len(calls["pay"]) == 2
            assert len(set(calls["pay"])) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("policy", "outcome"), [("fail", "ambiguous"), ("ask", "asked"), ("verify", "verified")]
)
def test_what_becomes_of_an_ambiguous_effect(policy: str, outcome: str) -> None:
    async def check(key: str) -> str:
        assert calls["pay"] == [key]
        return "verified"

    options = {"verify": check} if policy == "verify" else {"on_ambiguous": policy}

    @effect(**options)  # type: ignore[call-overload, untyped-decorator]
    async def pay() -> str:
        note("pay", idempotency_key())
        await asyncio.sleep(60)
        return "?"

    @durable
    async def handler() -> str:
        try:
            return str(await pay())
        except EffectAmbiguous:
            return "ambiguous"

    async def main() -> None:
        async with world() as one:
            run = await one.start(handler)
            async with asyncio.timeout(PATIENCE_S):
                while "pay" not in calls:
                    await asyncio.sleep(0.001)
            await one.crash()
            await one.boot()
            if policy == "ask":
                again = await one.run_of(run.id)
                await again.signal("pay", {"action": "result", "result": "asked"})
            assert await (await one.ended(run.id)).result() == outcome
            assert len(calls["pay"]) == 1

    asyncio.run(main())


# --- compensations


async def unbook(what: str) -> None:
    note("unbook", what)


@effect(compensate=unbook)
async def book(what: str) -> str:
    note("book", what)
    return what


def test_what_was_done_is_undone_in_reverse_order_when_the_run_fails() -> None:
    @durable
    async def trip() -> None:
        await book("flight")
        await book("hotel")
        raise RuntimeError("no car")

    async def scenario(one: World) -> None:
        run = await one.start(trip)
        ended = await one.ended(run.id)
        assert ended.status == "failed"
        assert calls["unbook"] == ["hotel", "flight"]

    play(scenario)


def test_a_saga_whose_step_gives_up_is_undone_not_parked() -> None:
    @durable
    async def trip() -> None:
        await book("flight")
        await flaky(9)

    async def scenario(one: World) -> None:
        ended = await one.ended((await one.start(trip)).id)
        assert ended.status == "failed"
        assert calls["unbook"] == ["flight"]

    play(scenario)


def test_a_cancelled_run_is_undone_also_when_it_was_suspended() -> None:
    @durable
    async def trip() -> None:
        await book("flight")
        await wait_for_signal("go")

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(trip)
        await until_status(one, run.id, "suspended")
        await run.cancel()
        ended = await one.ended_for_good(run.id)
        assert ended.status == "cancelled"
        assert calls["unbook"] == ["flight"]
        assert calls["book"] == ["flight"]

    play(scenario)


def test_a_crash_half_way_through_the_compensations_does_none_twice() -> None:
    hang = asyncio.Event()

    async def undo(what: str) -> None:
        note("undo", what)
        if what == "flight" and not hang.is_set():
            await asyncio.sleep(60)

    @effect(compensate=undo)
    async def do(what: str) -> None:
        note("do", what)

    @durable
    async def trip() -> None:
        for what in ("flight", "hotel"):
            await do(what)
        raise RuntimeError("no car")

    async def main() -> None:
        async with world() as one:
            run = await one.start(trip)
            async with asyncio.timeout(PATIENCE_S):
                while len(calls.get("undo", ())) < 2:
                    await asyncio.sleep(0.001)
            await one.idle()
            await one.crash()
            hang.set()
            await one.boot()
            ended = await one.ended(run.id)
            assert ended.status == "failed"
            assert calls["undo"] == ["hotel", "flight", "flight"]
            assert calls["do"] == ["flight", "hotel"]

    asyncio.run(main())


def test_what_could_not_be_undone_is_listed() -> None:
    @step(retry=Retry(attempts=2, initial=0.01))
    async def undo(what: str) -> None:
        raise ConnectionError("gone")

    @effect(compensate=undo)
    async def do(what: str) -> None:
        note("do", what)

    @durable
    async def trip() -> None:
        await do("flight")
        raise RuntimeError("no car")

    async def scenario(one: World) -> None:
        run = await one.start(trip)
        await one.ended(run.id)
        record = await one.store.get(run.id)
        assert record is not None
        assert "not undone: do (ConnectionError: gone)" in (record.error or "")

    play(scenario)


# --- limits, patches


def test_a_rate_limit_spreads_the_calls_of_all_runs() -> None:
    @step(rate_limit=RateLimit("spread", 2, per=0.2, burst=2))
    async def call() -> None:
        note("call", asyncio.get_running_loop().time())

    @durable
    async def handler() -> None:
        await call()

    async def scenario(one: World) -> None:
        began_s = asyncio.get_running_loop().time()
        runs = [await one.start(handler) for _ in range(6)]
        for run in runs:
            await (await one.ended_for_good(run.id)).result()
        times = sorted(calls["call"])
        assert len(times) == 6
        # From before the limit's first use: the first call may begin late, of what it was given.
        assert times[-1] - began_s >= 0.35

    play(scenario)


def test_a_patch_changes_new_runs_and_leaves_the_old_ones() -> None:
    gate = asyncio.Event()
    new_code = False

    @durable
    async def handler() -> list[str]:
        found = [await step.run("first", lambda: "first")]
        if new_code and patched("ask-twice"):
            found.append(await step.run("again", lambda: "again"))
        found.append(await step.run("second", lambda: "second"))
        await gate.wait()
        return found

    async def main() -> None:
        nonlocal new_code
        async with world() as one:
            old = await one.start(handler)
            async with asyncio.timeout(PATIENCE_S):
                while not any(e.key.endswith(" second") for e in await one.entries(old.id)):
                    await asyncio.sleep(0.001)
            await one.crash()
            new_code = True
            await one.boot()
            new = await one.start(handler)
            gate.set()
            assert await (await one.ended(old.id)).result() == ["first", "second"]
            assert await new.result() == ["first", "again", "second"]
            await one.crash()

    asyncio.run(main())


def test_a_fork_shares_the_past_and_makes_its_own_future() -> None:
    @durable
    async def handler(name: str) -> list[Any]:
        first = await step.run("first", lambda: note("first", name))
        second = await step.run("second", lambda: note("second", first))
        return [name, first, second]

    async def scenario(one: World) -> None:
        run = await one.start(handler, "a")
        assert await run.result() == ["a", 1, 1]
        key = next(e.key for e in await one.entries(run.id) if e.key.endswith("first"))
        forked = await (await one.run_of(run.id)).fork(2, results={key: 40})
        assert await forked.result() == ["a", 40, 2]
        assert calls == {"first": ["a"], "second": [1, 40]}
        assert forked.id != run.id
        with pytest.raises(ValueError, match="from_step=99"):
            await run.fork(99)

    play(scenario)


@pytest.mark.parametrize("leaves", ["closes", "drops", "stays"])
def test_the_last_item_and_the_end_are_recorded_as_one(leaves: str) -> None:
    gate = asyncio.Event()

    @step
    async def tokens() -> Any:
        yield "a"
        yield Last("b")
        raise AssertionError("nobody asks for more")

    @durable
    async def handler() -> list[Any]:
        found: list[Any] = []
        stream = tokens()
        async for token in stream:
            found.append(token)
            if len(found) == 2 and leaves != "stays":
                break
        if leaves == "closes":
            await stream.aclose()
        found.append(await step.run("after", lambda: note("after")))
        await gate.wait()
        return found

    async def main() -> None:
        async with world() as one:
            run = await one.start(handler)
            async with asyncio.timeout(PATIENCE_S):
                while not any(e.key.endswith(" after") for e in await one.entries(run.id)):
                    await asyncio.sleep(0.001)
            await one.crash()
            gate.set()
            await one.boot()
            assert await (await one.ended(run.id)).result() == ["a", "b", 1]

    asyncio.run(main())
