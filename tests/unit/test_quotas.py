from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_endpoints import quotas as room
from durable_endpoints.buckets import RateLimit
from durable_endpoints.limits import QUOTA_HORIZON_S, QUOTA_WAKE_S_MIN
from durable_endpoints.quotas import Quotas


class Timeless(selectors.DefaultSelector):
    """Where an event loop would wait, its time goes on at once."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("the loop would wait for ever")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class World:
    """A loop whose time is made, the clock that shows it, and the quotas under test."""

    def __init__(self) -> None:
        self.selector = Timeless()
        self.loop = asyncio.SelectorEventLoop(self.selector)
        self.loop.time = self.monotonic_s  # type: ignore[method-assign]
        self.quotas = Quotas(self)

    def monotonic_s(self) -> float:
        return self.selector.now_s

    def now_ms(self) -> int:
        raise AssertionError("quotas do not look at the wall clock")

    due_ms = now_ms

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            return runner.run(work)

    def timers(self) -> int:
        return sum(not timer.cancelled() for timer in self.loop._scheduled)  # type: ignore[attr-defined]

    def take_all(self, limit: RateLimit, owner: str, key: str = "") -> int:
        """Take while there is some; return how many there were."""
        taken = 0
        while self.quotas.try_take(limit, key, owner) == 0:
            taken += 1
        return taken


@pytest.fixture
def world() -> Any:
    made = World()
    yield made
    made.loop.close()


async def settle() -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


TEN = RateLimit("ten", 10)
SLOW = RateLimit("slow", 1)
ONE_AT_A_TIME = RateLimit("one", concurrent=1)
OF_THE_RUN: ContextVar[str] = ContextVar("of_the_run")


# --- what a limit is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: RateLimit(""), "name"), (lambda: RateLimit("x" * 201, 1), "name"),
        (lambda: RateLimit("x"), "concurrent="), (lambda: RateLimit("x", 0), "limit"),
        (lambda: RateLimit("x", -1), "limit"), (lambda: RateLimit("x", float("inf")), "limit"),
        (lambda: RateLimit("x", True), "limit"), (lambda: RateLimit("x", 1, per="day"), "per"),
        (lambda: RateLimit("x", 1, per=0), "per"), (lambda: RateLimit("x", 1, burst=0), "burst"),
        (lambda: RateLimit("x", 1, burst=1.5), "burst"),  # type: ignore[arg-type]
        (lambda: RateLimit("x", concurrent=0), "concurrent"),
        (lambda: RateLimit("x", concurrent=1, burst=3), "burst"),
        (lambda: RateLimit("x", 1, key="k" * 201), "key"),
    ],
)  # fmt: skip
def test_what_makes_no_limit_is_refused_by_name(make: Callable[[], Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize(
    ("limit", "rate", "capacity"),
    [
        (RateLimit("x", 10), 10.0, 10.0), (RateLimit("x", 60, per="minute"), 1.0, 60.0),
        (RateLimit("x", 36, per="hour"), 0.01, 36.0), (RateLimit("x", 1, per=4.0), 0.25, 1.0),
        (RateLimit("x", 0.5), 0.5, 1.0), (RateLimit("x", 10, burst=3), 10.0, 3.0),
        (RateLimit("x", concurrent=3), None, 1.0),
    ],
)  # fmt: skip
def test_rate_and_capacity(limit: RateLimit, rate: float | None, capacity: float) -> None:
    assert (limit.rate, limit.capacity) == (rate, capacity)


def test_the_key_comes_from_the_arguments_of_the_step() -> None:
    by_tenant = RateLimit("x", 1, key=lambda tenant, *, model: f"{tenant}/{model}")
    assert by_tenant.key_of(("a",), {"model": "m"}) == "a/m"
    assert RateLimit("x", 1, key="all").key_of((1, 2), {}) == "all"
    assert RateLimit("x", 1).key_of((1, 2), {}) == ""
    for bad in (lambda: 3, lambda: None, lambda: "k" * 201):
        with pytest.raises(ValueError, match="key"):
            RateLimit("x", 1, key=bad).key_of((), {})  # type: ignore[arg-type]


# --- tokens -----------------------------------------------------------------------------------


def test_a_burst_and_then_the_rate(world: World) -> None:
    assert world.take_all(TEN, "a") == 10
    world.selector.now_s += 0.35
    assert world.take_all(TEN, "a") == 3
    world.selector.now_s += 3600
    assert world.take_all(TEN, "a") == 10


def test_an_estimate_that_is_waited_for_is_kept(world: World) -> None:
    world.take_all(SLOW, "b")
    for _ in range(50):
        wait_s = world.quotas.try_take(SLOW, "", "a")
        if wait_s == 0:
            wait_s = world.quotas.try_take(SLOW, "", "a")
        assert 0 < wait_s <= 3
        world.selector.now_s += wait_s
        assert world.quotas.try_take(SLOW, "", "a") == 0


def test_keys_and_names_have_buckets_of_their_own(world: World) -> None:
    assert world.take_all(TEN, "a", key="k") == 10
    assert world.take_all(TEN, "a", key="l") == 10
    assert world.take_all(RateLimit("other", 4), "a", key="k") == 4


@settings(max_examples=60)
@given(
    st.floats(0.1, 50), st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), min_size=1, max_size=20),
)  # fmt: skip
def test_never_more_than_the_rate_and_the_burst(
    rate: float, burst: int, asked: list[tuple[float, int]]
) -> None:
    world = World()
    limit = RateLimit("x", rate, burst=burst)
    began_s, taken = world.monotonic_s(), 0
    for pause_s, count in asked:
        world.selector.now_s += pause_s
        taken += sum(world.quotas.try_take(limit, "", "a") == 0 for _ in range(count))
        assert taken <= burst + rate * (world.monotonic_s() - began_s) + 1e-3
    world.loop.close()


def test_waiters_are_served_at_the_rate(world: World) -> None:
    async def main() -> None:
        world.take_all(TEN, "a")
        began_s = world.monotonic_s()
        served: list[float] = []

        async def call() -> None:
            assert await world.quotas.take(TEN, "", "a", 60) == 0
            served.append(world.monotonic_s() - began_s)

        await asyncio.gather(*(call() for _ in range(30)))
        assert served == pytest.approx([n / 10 for n in range(1, 31)], abs=0.01)

    world.run(main())


# --- at a time --------------------------------------------------------------------------------


def test_so_many_at_a_time(world: World) -> None:
    limit = RateLimit("three", concurrent=3)
    assert world.take_all(limit, "a") == 3
    world.quotas.give_back(limit, "")
    assert world.take_all(limit, "a") == 1
    for _ in range(3):
        world.quotas.give_back(limit, "")
    assert world.take_all(limit, "a") == 3


def test_both_limits_hold_and_only_the_use_is_given_back(world: World) -> None:
    limit = RateLimit("both", 5, concurrent=2)
    assert world.take_all(limit, "a") == 2
    for _ in range(2):
        world.quotas.give_back(limit, "")
    assert world.take_all(limit, "a") == 2
    for _ in range(2):
        world.quotas.give_back(limit, "")
    assert world.take_all(limit, "a") == 1


def test_a_use_that_ends_serves_the_next(world: World) -> None:
    async def main() -> None:
        assert await world.quotas.take(ONE_AT_A_TIME, "", "a", 1) == 0
        waiting = [
            asyncio.create_task(world.quotas.take(ONE_AT_A_TIME, "", "a", 3600)) for _ in range(3)
        ]
        await settle()
        for n, task in enumerate(waiting):
            assert not task.done()
            world.quotas.give_back(ONE_AT_A_TIME, "")
            assert await task == 0
            assert [other.done() for other in waiting[n + 1 :]] == [False] * (2 - n)

    world.run(main())


def test_more_given_back_than_taken_is_an_error(world: World) -> None:
    with pytest.raises(RuntimeError, match="more often than taken"):
        world.quotas.give_back(ONE_AT_A_TIME, "")
    world.take_all(ONE_AT_A_TIME, "a")
    world.quotas.give_back(ONE_AT_A_TIME, "")
    with pytest.raises(RuntimeError, match="more often than taken"):
        world.quotas.give_back(ONE_AT_A_TIME, "")
    world.quotas.give_back(TEN, "")  # nothing to give back


def test_the_estimate_learns_how_long_a_use_lasts(world: World) -> None:
    early = 0.0
    for _ in range(30):
        assert world.quotas.try_take(ONE_AT_A_TIME, "", "a") == 0
        early = world.quotas.try_take(ONE_AT_A_TIME, "", "b")
        world.selector.now_s += 20
        world.quotas.give_back(ONE_AT_A_TIME, "")
    assert early == pytest.approx(20, rel=0.1)


# --- patience ---------------------------------------------------------------------------------


def test_who_cannot_be_served_in_time_is_told_at_once(world: World) -> None:
    async def main() -> None:
        world.take_all(SLOW, "a")
        before_s = world.monotonic_s()
        assert await world.quotas.take(SLOW, "", "a", 0.5) == pytest.approx(2.0)
        assert await world.quotas.take(SLOW, "", "b", 0) > 0
        assert world.monotonic_s() == before_s
        world.quotas.feed("paused", "", 60)
        assert await world.quotas.take(RateLimit("paused", 10), "", "a", 59) == pytest.approx(60)
        assert world.monotonic_s() == before_s

    world.run(main())


def test_patience_ends(world: World) -> None:
    async def main() -> None:
        world.take_all(ONE_AT_A_TIME, "a")
        before_s = world.monotonic_s()
        assert await world.quotas.take(ONE_AT_A_TIME, "", "a", 5) > 0
        assert world.monotonic_s() - before_s == pytest.approx(5)
        world.quotas.give_back(ONE_AT_A_TIME, "")
        assert await world.quotas.take(ONE_AT_A_TIME, "", "a", 5) == 0

    world.run(main())


def test_tokens_that_are_there_are_not_waited_for_because_of_the_uses(world: World) -> None:
    limit = RateLimit("both", 0.01, burst=5, concurrent=1)

    async def main() -> None:
        assert await world.quotas.take(limit, "", "a", 1) == 0
        tasks = [asyncio.create_task(world.quotas.take(limit, "", "a", 9)) for _ in range(5)]
        await settle()
        # Four tokens are left; the fifth will be there in 100 s.
        assert [task.done() for task in tasks] == [False] * 4 + [True]
        for task in tasks[:4]:
            world.quotas.give_back(limit, "")
            assert await task == 0

    world.run(main())


def test_too_many_waiters_are_told_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "QUOTA_WAITERS_MAX", 3)

    async def main() -> None:
        world.take_all(ONE_AT_A_TIME, "a")
        tasks = [
            asyncio.create_task(world.quotas.take(ONE_AT_A_TIME, "", "a", 60)) for _ in range(5)
        ]
        await settle()
        assert [task.done() for task in tasks] == [False, False, False, True, True]
        for task in tasks[:3]:
            world.quotas.give_back(ONE_AT_A_TIME, "")
            assert await task == 0

    world.run(main())


# --- fairness ---------------------------------------------------------------------------------


def test_a_thousand_waiters_of_one_owner_do_not_put_off_the_first_of_another(world: World) -> None:
    async def main() -> None:
        world.take_all(TEN, "crowd")
        served: list[str] = []

        async def call(owner: str) -> None:
            assert await world.quotas.take(TEN, "", owner, 3600) == 0
            served.append(owner)

        tasks = [asyncio.create_task(call("crowd")) for _ in range(1000)]
        await settle()
        lone = asyncio.create_task(call("lone"))
        await lone
        assert len(served) <= 2
        pair = [asyncio.create_task(call("lone")) for _ in range(20)]
        await asyncio.gather(*pair)
        assert Counter(served) == {"crowd": pytest.approx(21, abs=2), "lone": 21}
        await asyncio.gather(*tasks)

    world.run(main())


def test_owners_take_turns_and_each_owner_keeps_its_order(world: World) -> None:
    async def main() -> None:
        world.take_all(TEN, "x")
        served: list[str] = []

        async def call(name: str) -> None:
            assert await world.quotas.take(TEN, "", name[0], 60) == 0
            served.append(name)

        await asyncio.gather(*(call(name) for name in ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]))
        assert served == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]

    world.run(main())


def test_nobody_overtakes_those_who_wait(world: World) -> None:
    async def main() -> None:
        world.take_all(SLOW, "a")
        task = asyncio.create_task(world.quotas.take(SLOW, "", "a", 60))
        await settle()
        world.selector.now_s += 1.5  # a token is there, and nobody has looked yet
        assert world.quotas.try_take(SLOW, "", "b") > 0
        assert await task == 0

    world.run(main())


def test_a_thousand_of_one_owner_put_off_do_not_put_off_the_first_of_another(world: World) -> None:
    world.take_all(SLOW, "crowd")
    crowd = [world.quotas.try_take(SLOW, "", "crowd") for _ in range(1000)]
    lone = world.quotas.try_take(SLOW, "", "lone")
    assert max(crowd) > 900
    assert lone < 5


@pytest.mark.parametrize(
    "limit",
    [
        RateLimit("a", 1), RateLimit("b", 1000), RateLimit("c", 1, per="hour"),
        RateLimit("d", concurrent=1), RateLimit("e", 5, per="minute", concurrent=2),
    ],
    ids=lambda limit: limit.name,
)  # fmt: skip
@pytest.mark.parametrize("owners", [1, 10, 1000])
def test_a_thousand_put_off_do_not_come_back_at_once(
    world: World, limit: RateLimit, owners: int
) -> None:
    world.take_all(limit, "o0")
    # Time stands still: all thousand ask at the same moment.
    waits = sorted(world.quotas.try_take(limit, "", f"o{n % owners}") for n in range(1000))
    assert waits[0] > 0
    together = Counter(round(wait / QUOTA_WAKE_S_MIN) for wait in waits)
    assert max(together.values()) <= 4
    assert waits[-1] <= 3600 + QUOTA_HORIZON_S
    assert waits[-1] - waits[0] >= 999 * QUOTA_WAKE_S_MIN / 2


def test_those_put_off_are_served_when_they_come_back(world: World) -> None:
    """A thousand suspended callers that come back as told, with a little patience."""

    async def main() -> None:
        world.take_all(TEN, "x")
        asked = 0

        async def call() -> None:
            nonlocal asked
            asked += 1
            while wait_s := await world.quotas.take(TEN, "", "x", 0.2):
                await asyncio.sleep(wait_s)
                asked += 1

        began_s = world.monotonic_s()
        await asyncio.gather(*(call() for _ in range(1000)))
        assert world.monotonic_s() - began_s == pytest.approx(100, rel=0.05)
        assert asked <= 2100

    world.run(main())


# --- 429 --------------------------------------------------------------------------------------


def test_nothing_is_dealt_while_the_other_side_wants_a_pause(world: World) -> None:
    assert world.quotas.try_take(TEN, "k", "a") == 0
    world.quotas.feed("ten", "k", 30)
    world.quotas.feed("ten", "k", 5)  # the longer one counts
    world.quotas.feed("ten", "k", -1)
    assert world.quotas.try_take(TEN, "k", "a") == pytest.approx(30)
    assert world.quotas.try_take(TEN, "other", "a") == 0
    world.selector.now_s += 29.9
    assert world.take_all(TEN, "a", key="k") == 0
    world.selector.now_s += 0.1
    # Not the whole burst at once: that would bring the next 429.
    assert world.take_all(TEN, "a", key="k") == 1
    world.selector.now_s += 0.2
    assert world.take_all(TEN, "a", key="k") == 2


def test_a_shorter_pause_does_not_end_a_longer_one(world: World) -> None:
    world.quotas.feed("one", "", 30)
    world.quotas.feed("one", "", 5)
    world.selector.now_s += 29
    assert world.quotas.try_take(ONE_AT_A_TIME, "", "a") == pytest.approx(1)


def test_a_pause_before_the_first_use(world: World) -> None:
    for limit in (RateLimit("x", 10), RateLimit("y", concurrent=2)):
        world.quotas.feed(limit.name, "", 30)
        world.quotas.feed(limit.name, "", 30)
        assert world.take_all(limit, "a") == 0
        world.selector.now_s += 30
        assert world.take_all(limit, "a") >= 1


def test_those_who_wait_are_served_after_the_pause(world: World) -> None:
    async def main() -> None:
        world.take_all(TEN, "a")
        tasks = [asyncio.create_task(world.quotas.take(TEN, "", "a", 60)) for _ in range(3)]
        await settle()
        before_s = world.monotonic_s()
        world.quotas.feed("ten", "", 20)
        assert await tasks[0] == 0
        assert world.monotonic_s() - before_s == pytest.approx(20, abs=0.01)
        assert await asyncio.gather(*tasks) == [0, 0, 0]

    world.run(main())


# --- cancellation -----------------------------------------------------------------------------


def test_a_cancelled_waiter_loses_no_token(world: World) -> None:
    async def main() -> None:
        world.take_all(SLOW, "a")
        tasks = [asyncio.create_task(world.quotas.take(SLOW, "", "a", 60)) for _ in range(3)]
        await settle()
        before_s = world.monotonic_s()
        tasks[0].cancel()
        assert await tasks[1] == 0
        assert world.monotonic_s() - before_s == pytest.approx(1, abs=0.01)
        assert await tasks[2] == 0

    world.run(main())


def test_a_waiter_cancelled_when_it_was_dealt_passes_it_on(world: World) -> None:
    async def main() -> None:
        world.take_all(ONE_AT_A_TIME, "a")
        tasks = [asyncio.create_task(world.quotas.take(ONE_AT_A_TIME, "", "a", 60)) for _ in "ab"]
        await settle()
        world.quotas.give_back(ONE_AT_A_TIME, "")  # dealt to the first, which has not run yet
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert await tasks[1] == 0
        world.quotas.give_back(ONE_AT_A_TIME, "")
        with pytest.raises(RuntimeError):
            world.quotas.give_back(ONE_AT_A_TIME, "")

    world.run(main())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3), st.floats(0, 3)), max_size=25),
    st.integers(1, 3),
)
def test_whatever_is_cancelled_no_use_is_lost(
    calls: list[tuple[str, float, float]], concurrent: int
) -> None:
    world = World()
    limit = RateLimit("x", 50, concurrent=concurrent)
    going_on = 0

    async def call(owner: str, patience_s: float) -> None:
        nonlocal going_on
        if await world.quotas.take(limit, "", owner, patience_s) != 0:
            return
        going_on += 1
        assert going_on <= concurrent
        try:
            await asyncio.sleep(0.3)
        finally:
            going_on -= 1
            world.quotas.give_back(limit, "")

    async def main() -> None:
        tasks = []
        for owner, patience_s, end_s in calls:
            task = asyncio.create_task(call(owner, patience_s))
            asyncio.get_running_loop().call_later(end_s, task.cancel)
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        await asyncio.sleep(10)
        assert world.take_all(limit, "a") == concurrent

    world.run(main())


# --- memory -----------------------------------------------------------------------------------


def test_buckets_at_rest_are_forgotten(world: World) -> None:
    for n in range(5000):
        assert world.quotas.try_take(TEN, f"tenant{n}", "a") == 0
        world.selector.now_s += 0.01
    assert len(world.quotas) < 100
    world.selector.now_s += 3600
    for n in range(40):
        world.quotas.try_take(TEN, f"more{n}", "a")
    assert len(world.quotas) <= 40


def test_a_bucket_in_use_is_not_forgotten(world: World) -> None:
    world.quotas.try_take(ONE_AT_A_TIME, "used", "a")
    world.quotas.feed("ten", "paused", 10**6)
    world.take_all(RateLimit("slow", 1, per="hour"), "a", key="empty")
    for n in range(500):
        world.quotas.try_take(TEN, f"tenant{n}", "a")
        world.selector.now_s += 1
    assert world.quotas.try_take(ONE_AT_A_TIME, "used", "a") > 0
    assert world.quotas.try_take(TEN, "paused", "a") > 0
    assert world.quotas.try_take(RateLimit("slow", 1, per="hour"), "empty", "a") > 0


def test_the_number_of_buckets_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "QUOTA_BUCKETS_MAX", 10)

    async def main() -> None:
        for n in range(10):
            assert world.quotas.try_take(TEN, f"k{n}", "a") == 0
        waits = [world.quotas.try_take(TEN, f"l{n}", "a") for n in range(10)]
        waits += [await world.quotas.take(TEN, f"m{n}", "a", 5) for n in range(10)]
        assert min(waits) > 0
        assert len(set(waits)) == 20
        world.quotas.feed("ten", "n", 5)
        assert len(world.quotas) == 10
        world.selector.now_s += 60
        assert world.quotas.try_take(TEN, "l0", "a") == 0

    world.run(main())


def test_nothing_runs_while_nobody_waits(world: World) -> None:
    async def main() -> None:
        world.take_all(SLOW, "a")
        world.quotas.feed("slow", "", 5)
        assert world.timers() == 0
        task = asyncio.create_task(world.quotas.take(SLOW, "", "a", 60))
        await settle()
        assert world.timers() == 2  # its patience and the next token
        task.cancel()
        await settle()
        assert world.timers() == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    world.run(main())


def test_a_timer_holds_nothing_of_the_run_that_armed_it(world: World) -> None:
    async def main() -> None:
        OF_THE_RUN.set("large")
        world.take_all(SLOW, "a")
        task = asyncio.create_task(world.quotas.take(SLOW, "", "a", 60))
        await settle()
        timer: Any = world.quotas._buckets["slow", ""].timer
        assert OF_THE_RUN not in timer._context
        assert await task == 0

    world.run(main())


def test_owners_put_off_are_forgotten(world: World) -> None:
    limit = RateLimit("slow", 100, burst=1)
    for n in range(3000):
        world.quotas.try_take(limit, "", f"o{n}")
        world.selector.now_s += 0.01
    assert len(world.quotas._buckets["slow", ""].promised) < 100
