"""Rate limits over several nodes: shared, fair, and none the worse for a node that dies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from durable_endpoints import Engine, MemoryStore, RateLimit, durable, limits, step
from durable_endpoints.buckets import Bucket
from durable_endpoints.clock import SystemClock
from durable_endpoints.engine.functions import Run
from durable_endpoints.lent import Demand, Grant, Lent
from durable_endpoints.limits import QUOTA_FRESH_S, QUOTA_KEPT_S
from durable_endpoints.quotas import Quotas
from durable_endpoints.stores.postgres import PostgresStore
from tests.engine.worlds import PATIENCE_S, World
from tests.postgres.conftest import Nodes
from tests.postgres.test_nodes import execute, execute_value
from tests.postgres.test_remote import play


class Node:
    """The quotas of one node, and how often they asked the database."""

    def __init__(self, store: PostgresStore) -> None:
        assert store.nodes is not None
        self.store = store
        self.trips = 0
        self.alive = True
        self._nodes = store.nodes
        self._tasks: set[asyncio.Task[None]] = set()
        self.quotas = Quotas(SystemClock())
        self.quotas.share(self, self._spawn)

    async def lend(self, demand: Demand) -> Grant:
        self.trips += 1
        return await self._nodes.lend(demand)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if not self.alive:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def take(self, limit: RateLimit, key: str = "", owner: str = "") -> None:
        """Take one, however long that takes."""
        while left_s := await self.quotas.take(limit, key, owner, 1.0):
            await asyncio.sleep(min(left_s, 0.2))

    async def die(self) -> None:
        """Ask for nothing and give nothing back from now on; the lease is over."""
        self.alive = False
        await asyncio.gather(*self._tasks)
        assert self.store._lease is not None
        await self.store._lease.stop()
        await execute(
            self.store, "update nodes set lease_until = now() - interval '1 s' where node = $1",
            self.store.node,
        )  # fmt: skip

    async def still(self) -> None:
        """Wait until nothing is being asked."""
        while self._tasks:
            await asyncio.gather(*self._tasks)


@asynccontextmanager
async def sharing(nodes: Nodes, count: int = 3) -> AsyncIterator[list[Node]]:
    async with nodes(count) as stores:
        made = [Node(store) for store in stores]
        yield made
        for node in made:
            await node.still()


class Stalls:
    """How long this process or the database did not get on: no fault of whoever is measured."""

    TRIP_S = 0.1  # what a question and its answer may take on a busy machine

    def __init__(self) -> None:
        self._lost_s = 0.0
        self._looked = asyncio.Event()

    async def lost_s(self) -> float:
        """Return it, up to now: what is still going on is waited for."""
        for _ in range(2):  # the look that is under way may have begun long ago
            self._looked.clear()
            await self._looked.wait()
        return self._lost_s

    async def watch(self, store: PostgresStore) -> None:
        connection = await asyncpg.connect(store.address.dsn)
        try:
            while True:
                began_s = time.monotonic()
                await connection.fetchval("select 1")
                await asyncio.sleep(0.01)
                self._lost_s += max(0.0, time.monotonic() - began_s - self.TRIP_S)
                self._looked.set()
        finally:
            connection.terminate()


@asynccontextmanager
async def stalls(node: Node) -> AsyncIterator[Stalls]:
    """Measure, beside what is measured, how long nothing could be done."""
    found = Stalls()
    watching = asyncio.create_task(found.watch(node.store))
    await found.lost_s()  # it has begun
    try:
        yield found
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


class Uses:
    """Who is at it, and how many there ever were side by side."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.by_node = Counter[int]()
        self.times: list[float] = []

    async def use(self, nodes: list[Node], number: int, limit: RateLimit, last_s: float) -> None:
        node = nodes[number]
        await node.take(limit)
        try:
            self.now += 1
            self.most = max(self.most, self.now)
            self.by_node[number] += 1
            self.times.append(time.monotonic())
            await asyncio.sleep(last_s)
        finally:
            self.now -= 1
            node.quotas.give_back(limit, "")


async def busy(
    nodes: list[Node], limit: RateLimit, *, for_s: float, callers: int, last_s: float = 0.0,
    least: int = 0, each: int = 0,
) -> Uses:  # fmt: skip
    """Have callers on every node use a limit, again and again: so long, and so often.

    `each`: so often on each node, if that happens while one has patience.
    """
    uses = Uses()
    until_s = time.monotonic() + for_s

    def is_over() -> bool:
        now_s = time.monotonic()
        if now_s < until_s or uses.by_node.total() < least:
            return False
        fewest = min(uses.by_node[number] for number in range(len(nodes)))
        return fewest >= each or now_s > until_s + PATIENCE_S

    async def call(number: int) -> None:
        while not is_over():
            await uses.use(nodes, number, limit, last_s)

    await asyncio.gather(*(call(n) for n in range(len(nodes)) for _ in range(callers)))
    return uses


# --- the rate


def test_all_nodes_together_keep_to_the_rate_and_ask_seldom(nodes: Nodes) -> None:
    limit = RateLimit("tokens", 200, burst=40)

    async def main() -> None:
        async with sharing(nodes) as made:
            async with stalls(made[0]) as lost:
                began_s = time.monotonic()
                uses = await busy(made, limit, for_s=2.0, callers=30, least=400)
                took_s = time.monotonic() - began_s - await lost.lost_s()
            for first_s in uses.times[:: len(uses.times) // 20]:
                for last_s in uses.times[:: len(uses.times) // 20]:
                    if last_s > first_s:
                        count = sum(first_s <= at < last_s for at in uses.times)
                        assert count <= 40 + 200 * (last_s - first_s + QUOTA_KEPT_S) + 1
            assert len(uses.times) >= 0.7 * (40 + 200 * took_s), took_s
            assert min(uses.by_node.values()) >= 0.4 * max(uses.by_node.values()), uses.by_node
            assert sum(node.trips for node in made) < len(uses.times) / 2

    asyncio.run(main())


def test_a_node_alone_gets_the_whole_rate_by_few_trips(nodes: Nodes) -> None:
    limit = RateLimit("tokens", 1000, burst=100)

    async def main() -> None:
        async with sharing(nodes, 1) as made:
            async with stalls(made[0]) as lost:
                uses = await busy(made, limit, for_s=2.0, callers=50)
                worked_s = 2.0 - await lost.lost_s()
            assert 600 * worked_s <= len(uses.times) <= 100 + 1000 * (2.2 + QUOTA_KEPT_S)
            assert made[0].trips < len(uses.times) / 10

    asyncio.run(main())


def test_one_caller_is_not_behind_a_thousand_of_another_node(nodes: Nodes) -> None:
    limit = RateLimit("tokens", 20, burst=1)

    async def main() -> None:
        async with sharing(nodes, 2) as (crowded, other):
            crowd = [asyncio.create_task(crowded.take(limit)) for _ in range(1000)]
            await asyncio.sleep(0.5)
            async with stalls(other) as lost:
                for _ in range(3):
                    began_s, lost_s = time.monotonic(), await lost.lost_s()
                    await other.take(limit)
                    took_s = time.monotonic() - began_s
                    assert took_s - (await lost.lost_s() - lost_s) < 1.5
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)

    asyncio.run(main())


def test_nodes_take_turns_where_there_is_one_token_now_and_then(nodes: Nodes) -> None:
    limit = RateLimit("slow", 4, burst=1)

    async def main() -> None:
        async with sharing(nodes, 3) as made:
            # So often as that is due in three seconds, however long it takes.
            uses = await busy(made, limit, for_s=0, callers=3, least=12)
            assert min(uses.by_node[n] for n in range(3)) >= 2, uses.by_node
            took_s = uses.times[-1] - uses.times[0]
            assert len(uses.times) <= 2 + 4 * (took_s + QUOTA_KEPT_S)

    asyncio.run(main())


def demand(limit: RateLimit, *, had: int = 0) -> Demand:
    """Ask for one, now."""
    rate, uses = limit.rate, int(limit.concurrent is not None)
    return Demand(
        limit.name, "", rate, limit.capacity, limit.concurrent, 0, int(rate is not None),
        had, 0, uses, ahead_s=0.0,
    )  # fmt: skip


async def later(node: Node, by_s: float, *, silent_s: float = 0.0) -> None:
    """Let time pass for all buckets: real time brings next to nothing at these tests' rates.

    `silent_s`: for so long no node has asked.
    """
    await execute(node.store, "update quotas set full_at = full_at - $1::float8", by_s)
    moved = "wants_since = wants_since - $1::float8, seen_at = seen_at - $2::float8"
    await execute(node.store, f"update quota_nodes set {moved}", by_s, silent_s)


HOUR_S = 3600.0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Believe for a minute, as the pauses of a test's machine need it, that a node waits."""
    monkeypatch.setattr(limits, "QUOTA_FRESH_S", 40 * QUOTA_FRESH_S)
    return 40 * QUOTA_FRESH_S


@pytest.mark.parametrize(
    "limit", [RateLimit("r", 1, per="hour", burst=1), RateLimit("u", concurrent=1)],
    ids=["rate", "uses"],
)  # fmt: skip
def test_whoever_has_waited_longest_is_lent_the_next(
    nodes: Nodes, limit: RateLimit, patient: float
) -> None:
    async def main() -> None:
        async with sharing(nodes) as (one, two, three):

            async def lent(node: Node) -> int:
                grant = await node.lend(demand(limit))
                return max(grant.tokens, grant.uses)

            assert await lent(one) == 1
            assert [await lent(node) for node in (two, three)] == [0, 0]
            await later(one, HOUR_S)  # one token is there; one's use ends when it asks again
            assert [await lent(node) for node in (one, three, two)] == [0, 0, 1]
            if limit.concurrent is None:
                await later(one, HOUR_S)
            else:
                assert (await two.lend(demand(limit))).uses == 0  # it gives its own back
            assert [await lent(node) for node in (two, one, three)] == [0, 0, 1]
            # Who does not ask again for a while does not wait any more.
            await later(one, HOUR_S, silent_s=patient + 0.1)
            if limit.concurrent is None:
                assert await lent(two) == 1

    asyncio.run(main())


def test_nodes_that_wait_are_lent_equal_parts_whoever_asks_first(
    nodes: Nodes, patient: float
) -> None:
    limit = RateLimit("shares", 60, per="hour", burst=120)
    many = replace(demand(limit), tokens=200)

    async def main() -> None:
        async with sharing(nodes) as made:
            first, *others = [(await node.lend(many)).tokens for node in made]
            assert first == 120 > 6 * sum(others), others  # tokens come while they ask
            await later(made[0], HOUR_S)
            lent = [(await node.lend(many)).tokens for node in made]
            assert min(lent) >= 0.7 * max(lent), lent
            assert sum(lent) >= 54, lent

    asyncio.run(main())


def test_keys_and_names_have_buckets_of_their_own(nodes: Nodes) -> None:
    limit = RateLimit("tenants", 1, per="hour", burst=1)

    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            async with asyncio.timeout(PATIENCE_S):  # a second one of a bucket takes an hour
                for key in ("a", "b", "\0", "\ue000"):
                    await one.take(limit, key)
                await two.take(RateLimit("other", 1, per="hour"), "a")
            assert await two.quotas.take(limit, "a", "", 0.05) > 0

    asyncio.run(main())


def test_a_pause_that_one_node_is_told_holds_on_all(nodes: Nodes) -> None:
    limit = RateLimit("paused", 2, burst=100)

    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            await two.take(limit)
            began_s = time.monotonic()
            one.quotas.feed("paused", "", 1.0)
            await one.still()
            await asyncio.sleep(QUOTA_KEPT_S + 0.05)  # what had been lent is void by then
            await two.take(limit)
            assert 0.7 < time.monotonic() - began_s < 10
            # Not the whole burst at once: that would bring the next 429.
            assert not await _takes_at_once(two, limit, 20)  # ten seconds' worth

    asyncio.run(main())


async def _takes_at_once(node: Node, limit: RateLimit, count: int) -> bool:
    taking = [asyncio.create_task(node.take(limit)) for _ in range(count)]
    _, waiting = await asyncio.wait(taking, timeout=0.5)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*taking, return_exceptions=True)
    return not waiting


def test_what_a_dead_node_was_lent_of_a_rate_comes_anew(nodes: Nodes) -> None:
    limit = RateLimit("tokens", 50, burst=20)

    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            await asyncio.gather(*(one.take(limit) for _ in range(40)))
            await one.die()
            async with stalls(two) as lost:
                began_s = time.monotonic()
                await asyncio.gather(*(two.take(limit) for _ in range(50)))
                took_s = time.monotonic() - began_s
                assert took_s - await lost.lost_s() < 3

    asyncio.run(main())


# --- at a time


def test_so_many_at_a_time_over_all_nodes(nodes: Nodes) -> None:
    limit = RateLimit("uses", concurrent=4)

    async def main() -> None:
        async with sharing(nodes) as made:
            uses = await busy(made, limit, for_s=3.0, callers=6, last_s=0.02, least=360)
            assert uses.most == 4
            assert min(uses.by_node[n] for n in range(3)) >= 0.3 * max(uses.by_node.values())
            held = "select coalesce(sum(held), 0) from quota_nodes"
            async with asyncio.timeout(PATIENCE_S):  # all is given back by and by
                while await _asked(made[0].store, held) != 0:
                    await asyncio.sleep(0.02)

    asyncio.run(main())


def test_one_at_a_time_goes_round_all_nodes(nodes: Nodes) -> None:
    limit = RateLimit("one", concurrent=1)

    async def main() -> None:
        async with sharing(nodes) as made:
            uses = await busy(made, limit, for_s=4.0, callers=2, last_s=0.02, each=2)
            assert uses.most == 1
            assert min(uses.by_node[n] for n in range(3)) >= 2, uses.by_node

    asyncio.run(main())


def test_a_node_alone_needs_no_trip_for_each_use(nodes: Nodes) -> None:
    limit = RateLimit("uses", concurrent=4)

    async def main() -> None:
        async with sharing(nodes, 1) as made:
            # With so many the few trips of the beginning do not count.
            uses = await busy(made, limit, for_s=1.0, callers=8, last_s=0.005, least=300)
            assert uses.most == 4
            assert made[0].trips < len(uses.times) / 10

    asyncio.run(main())


def test_uses_of_a_dead_node_are_free_when_its_lease_is_over(nodes: Nodes) -> None:
    limit = RateLimit("uses", concurrent=2)

    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            for _ in range(2):
                await one.take(limit)
            assert await two.quotas.take(limit, "", "", 0.3) > 0
            await one.die()
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(2):
                    await two.take(limit)
            assert await two.quotas.take(limit, "", "", 0.3) > 0

    asyncio.run(main())


def test_a_use_whose_caller_has_left_is_given_back(nodes: Nodes) -> None:
    limit = RateLimit("uses", concurrent=1)

    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            assert await two.quotas.take(limit, "", "", 0.0001) > 0  # asks, and does not wait
            assert two.trips == 1
            assert two.quotas.try_take(limit, "k", "") > 0
            await two.still()
            assert two.quotas.try_take(limit, "k", "") == 0
            two.quotas.give_back(limit, "k")
            async with asyncio.timeout(PATIENCE_S):
                await one.take(limit)
                await one.take(limit, "k")

    asyncio.run(main())


def test_a_limit_of_both_kinds_keeps_both(nodes: Nodes) -> None:
    limit = RateLimit("both", 40, burst=5, concurrent=2)

    async def main() -> None:
        async with sharing(nodes, 2) as made:
            async with stalls(made[0]) as lost:
                uses = await busy(made, limit, for_s=1.5, callers=5, last_s=0.01)
                worked_s = 1.5 - await lost.lost_s()
            assert uses.most <= 2
            took_s = uses.times[-1] - uses.times[0]
            assert 10 * worked_s <= len(uses.times) <= 6 + 40 * (took_s + QUOTA_KEPT_S)

    asyncio.run(main())


def test_buckets_at_rest_are_forgotten(nodes: Nodes) -> None:
    async def main() -> None:
        async with sharing(nodes, 2) as (one, two):
            for number in range(5):
                await one.take(RateLimit("quick", 1000), f"k{number}")
            await two.take(RateLimit("slow", 1, per="hour"))
            await two.take(RateLimit("uses", concurrent=2))
            for node in (one, two):
                await node.still()
            forget = (_sql("forget_quotas"), 0.2)
            await asyncio.sleep(0.5)
            await execute(one.store, *forget)
            assert await _asked(one.store, "select count(*) from quotas") == 2
            await two.die()
            await execute(one.store, *forget)
            assert await _asked(one.store, "select count(*) from quota_nodes") == 0

    asyncio.run(main())


def _sql(name: str) -> str:
    from durable_endpoints.stores.postgres_link import sql

    return sql(f"postgres/{name}")


async def _asked(store: PostgresStore, statement: str) -> object:
    return await execute_value(store, statement.replace(" quota", f" {store.address.schema}.quota"))


# --- the engine


both: list[int] = []
beside: list[int] = []


@step(rate_limit=RateLimit("engines", concurrent=1))
async def alone(number: int) -> int:
    both.append(number)
    beside.append(len(both))
    await asyncio.sleep(0.02)
    both.remove(number)
    return number


@durable
async def limited(number: int) -> int:
    return await alone(number) + await alone(number)


def test_steps_of_runs_on_two_nodes_keep_to_one_limit(postgres: Callable[[], str]) -> None:
    beside.clear()

    async def scenario(one: World, two: World) -> None:
        runs: list[Run] = [
            await world.start(limited, number) for number in range(6) for world in (one, two)
        ]
        async with asyncio.timeout(PATIENCE_S):
            results = [await run.result() for run in runs]
        assert sorted(results) == sorted([2 * number for number in range(6)] * 2)
        assert beside == [1] * 24

    play(postgres, scenario)


def test_one_process_alone_keeps_its_limits_to_itself() -> None:
    async def main() -> None:
        engine = Engine(MemoryStore())
        await engine.open()
        quotas = engine.waking.quotas
        assert await quotas.take(RateLimit("own", 5), "", "", 1) == 0
        (bucket,) = quotas._buckets.values()
        assert isinstance(bucket, Bucket)
        assert not isinstance(bucket, Lent)
        await engine.close()

    asyncio.run(main())
