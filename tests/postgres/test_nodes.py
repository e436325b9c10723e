"""Several nodes on one database: who may take whose runs, and in which order they wait."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import asyncpg
import pytest

from durable_endpoints.errors import StoreRefused
from durable_endpoints.records import Frame
from durable_endpoints.stores.postgres import PostgresStore
from durable_endpoints.stores.postgres_schema import SCHEMA
from durable_endpoints.stores.protocol import Query
from tests.conformance.made import frame, opening, record
from tests.postgres.conftest import Nodes
from tests.support.postgres import Cluster

PATIENCE_S = 20


async def unowned(store: PostgresStore) -> list[str]:
    return [run.run_id for run in await store.list(Query(("running",), unowned=True))]


async def execute(store: PostgresStore, statement: str, *values: object) -> str:
    connection = await asyncpg.connect(
        store.address.dsn, server_settings={"search_path": store.address.schema}
    )
    try:
        return str(await connection.execute(statement, *values))
    finally:
        await connection.close()


def test_i16_a_run_is_taken_from_its_node_only_when_the_lease_is_over(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes(lease_ttl=60) as (one, two):  # renewed once all of this is over
            await one.append([opening()])
            assert await unowned(two) == []
            assert await two.claim(["r1"], 5) == []
            await execute(one, "update nodes set lease_until = now() where node = $1", one.node)
            assert await unowned(two) == ["r1"]
            (taken,) = await two.claim(["r1"], 5)
            assert (taken.epoch, taken.attempts) == (2, 1)
            assert await one.append([frame(first=1)]) == {"r1"}
            assert not await two.append([frame(first=1, epoch=2)])
            # Now it is the other one's, and the first one may not have it back.
            assert await one.claim(["r1"], 5) == []

    asyncio.run(main())


def test_a_node_that_closes_hands_over_at_once(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            await one.append([opening("r1"), opening("r2")])
            await one.close()
            assert await unowned(two) == ["r2", "r1"]
            assert len(await two.claim(["r1", "r2"], 5)) == 2

    asyncio.run(main())


def test_i22_released_runs_are_anybodys_and_have_their_attempts_back(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            await one.append([opening("r1"), opening("r2")])
            await one.claim(["r1"], 5)
            await one.release(["r1"])
            assert await unowned(two) == ["r1"]
            await two.release(["r2"])  # not its own to give
            assert await unowned(two) == ["r1"]
            (taken,) = await two.claim(["r1"], 5)
            assert taken.attempts == 1

    asyncio.run(main())


@pytest.mark.parametrize("status", ["suspended", "diverged"])
def test_a_run_that_nobody_drives_is_anybodys(nodes: Nodes, status: str) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            await one.append([opening()])
            await one.append([frame(first=1, status=status)])  # type: ignore[arg-type]
            found = await asyncio.gather(one.claim(["r1"], 5), two.claim(["r1"], 5))
            assert sorted(len(runs) for runs in found) == [0, 1]

    asyncio.run(main())


def test_i7_one_key_is_one_run_whichever_node_is_asked(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            for number in range(20):
                key = {"principal": "ann", "idempotency_key": f"k{number}"}
                a, b = f"a{number}", f"b{number}"
                fenced = await asyncio.gather(
                    one.append([frame(a, opening=record(a, **key))]),
                    two.append([frame(b, opening=record(b, **key)), opening(f"c{number}")]),
                )
                assert sorted(set().union(*fenced)) in ([a], [b])
                found = await one.find("ann", "POST /chat", f"k{number}")
                assert found is not None
                assert {found.run_id} == {a, b} - set().union(*fenced)
                assert await one.get(f"c{number}") is not None

    asyncio.run(main())


def test_nodes_never_wait_for_each_other_in_a_circle(nodes: Nodes) -> None:
    """Batches that open runs of the same keys, wake and fence each other's runs, claims between."""

    async def main() -> None:
        async with nodes(3) as stores:
            ids = [f"r{number}" for number in range(12)]
            before = await deadlocks(stores[0])
            await stores[0].append([opening(run_id) for run_id in ids])
            waited = Counter[str]()

            async def work(store: PostgresStore, seed: int) -> None:
                chance = random.Random(seed)
                for number in range(60):
                    batch: list[Frame] = [
                        frame(run_id, 1, wakes=chance.choice(ids), status="running")
                        for run_id in chance.sample(ids, 6)
                    ]
                    for key in chance.sample(range(8), 4):
                        new = f"n{seed}-{number}-{key}"
                        row = record(new, idempotency_key=f"{number % 20}/{key}")
                        batch.append(frame(new, opening=row))
                    chance.shuffle(batch)
                    await store.append(batch)
                    waited[store.node] += 1
                    await store.claim(chance.sample(ids, 3), 5)

            await asyncio.gather(*(work(store, seed) for seed, store in enumerate(stores)))
            assert await deadlocks(stores[0]) == before
            assert set(waited.values()) == {60}

    asyncio.run(main())


async def deadlocks(store: PostgresStore) -> object:
    """Return how many there have been, in other tests on this server too."""
    asked = "select deadlocks from pg_stat_database where datname = current_database()"
    return await execute_value(store, asked)


async def execute_value(store: PostgresStore, statement: str) -> object:
    connection = await asyncpg.connect(store.address.dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_a_lease_is_renewed_while_a_handler_keeps_the_loop(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes(2, lease_ttl=5) as (one, two):
            assert not await one.append([opening()])
            time.sleep(5.2)  # what a handler ought not to do, and does
            assert one.holds_lease
            assert await two.claim(["r1"], 5) == []
            assert not await one.append([frame(first=1)])

    asyncio.run(main())


def test_i6_a_node_without_a_lease_publishes_nothing_until_it_has_one_again(
    cluster: Cluster,
) -> None:
    async def main() -> None:
        # Some seconds: a pause of this machine is not to end the lease, the test is.
        store = PostgresStore(cluster.address(lease_ttl=3))
        await store.open()
        assert not await store.append([opening("r1")])
        cluster.kill()
        began_s = time.monotonic()
        fenced = await store.append([frame(first=1)])
        assert fenced == {"r1"}
        assert time.monotonic() - began_s < 10  # not when the database is there again
        assert not store.holds_lease
        assert "lease" in str(store.away)
        assert await store.append([opening("r2")]) == {"r2"}
        cluster.start()
        async with asyncio.timeout(PATIENCE_S):
            while store.away:  # nothing comes before this says so: nothing is to be written for it
                await asyncio.sleep(0.01)
            while await store.append([opening("r2")]):  # the lease may have ended meanwhile
                await asyncio.sleep(0.01)
        assert store.away is None
        assert await unowned(store) == ["r2", "r1"]  # its own are among them
        (run,) = await store.claim(["r1"], 5)
        assert not await store.append([frame(first=1, epoch=run.epoch), opening("r3")])
        await store.close()

    asyncio.run(main())


def test_a_store_that_is_opened_again_is_another_node(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            await one.append([opening()])
            former = one.node
            await one.open()
            assert one.node != former
            assert len(await two.claim(["r1"], 5)) == 1
            assert await one.claim(["r1"], 5) == []

    asyncio.run(main())


# --- start


def test_several_nodes_migrate_at_once(postgres: Callable[[], str]) -> None:
    async def main() -> None:
        address = postgres()
        stores = [PostgresStore(address) for _ in range(5)]
        await asyncio.gather(*(store.open() for store in stores))
        assert not await stores[0].append([opening()])
        assert await stores[4].get("r1") is not None
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_a_newer_schema_is_refused(postgres: Callable[[], str]) -> None:
    async def main() -> None:
        store = PostgresStore(postgres())
        await store.open()
        await execute(store, "insert into migrations (number) values ($1)", SCHEMA + 1)
        await store.close()
        with pytest.raises(StoreRefused, match=f"has schema {SCHEMA + 1}; this release knows"):
            await store.open()

    asyncio.run(main())


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_i1_weak_settings_are_refused(setting: str) -> None:
    async def main(address: str) -> None:
        store = PostgresStore(address)
        with pytest.raises(StoreRefused, match=f"runs with {setting} = off"):
            await store.open()

    with Cluster(**{setting: "off"}) as weak:
        asyncio.run(main(weak.address()))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("schema=Bad-Name", "choose up to 40"),
        ("lease_ttl=0.1", "at least 1"),
        ("lease_ttl=x", "give seconds"),
    ],
)
def test_addresses_that_cannot_be_are_refused(query: str, message: str) -> None:
    with pytest.raises(StoreRefused, match=message):
        PostgresStore(f"postgresql://ann:secret@db/app?{query}")


def test_a_password_is_never_shown() -> None:
    store = PostgresStore("postgresql://ann:secret@db:5432/app?schema=mine&sslmode=require")
    assert store.address.shown == "postgresql://ann@db:5432/app?schema=mine"
    assert store.address.dsn == "postgresql://ann:secret@db:5432/app?sslmode=require"


def test_a_server_that_refuses_us_is_refused(cluster: Cluster) -> None:
    async def main() -> None:
        url = cluster.url().replace("/postgres", "/nothing")
        with pytest.raises(StoreRefused, match=r"cannot be used: .*nothing"):
            await PostgresStore(url).open()

    asyncio.run(main())


def test_a_server_that_is_starting_is_waited_for(cluster: Cluster) -> None:
    async def main() -> None:
        cluster.stop()
        starting = threading.Timer(0.5, cluster.start)
        starting.start()
        store = PostgresStore(cluster.address())
        await store.open()
        starting.join()
        await store.close()

    asyncio.run(main())


def test_no_thread_and_no_connection_is_left(cluster: Cluster) -> None:
    async def main() -> None:
        store = PostgresStore(cluster.address())
        await store.open()
        await store.append([opening()])
        await asyncio.gather(*(store.get("r1") for _ in range(10)))
        await store.close()

    asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name.startswith("durable")]
    deadline = time.monotonic() + PATIENCE_S
    asked = "select count(*) from pg_stat_activity where application_name like 'durable%'"
    while cluster.psql(asked) != "0\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
