"""I9: what becomes of a batch when the connection, or the server, goes away under it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from durable_endpoints.errors import StoreAway, StoreFailed
from durable_endpoints.records import Frame
from durable_endpoints.stores import postgres_append
from durable_endpoints.stores.postgres import PostgresStore
from tests.conformance.made import frame, opening, record, wait
from tests.support.postgres import Cluster
from tests.support.server import TCPProxy

PATIENCE_S = 20


@asynccontextmanager
async def through_proxy(cluster: Cluster) -> AsyncIterator[tuple[PostgresStore, TCPProxy]]:
    """Open a store whose connections can be cut."""
    async with TCPProxy(cluster.port) as proxy:
        # Who is cut off for a while is not to lose its lease: that is another test.
        store = PostgresStore(cluster.address(port=proxy.port, lease_ttl=60))
        await store.open()
        try:
            yield store, proxy
        finally:
            proxy.edit = bytes
            await store.close()


@asynccontextmanager
async def held(store: PostgresStore, cluster: Cluster, run_id: str) -> AsyncIterator[None]:
    """Hold the lock of a run's row, so that an append of it waits inside the server."""
    connection = await asyncpg.connect(cluster.url())
    async with connection.transaction():
        await connection.execute(f"set search_path = {store.address.schema}")
        await connection.execute("select from runs where run_id = $1 for update", run_id)
        yield
    await connection.close()


async def until_waiting(cluster: Cluster, count: int = 1) -> None:
    """Wait until `count` writers wait for a lock inside the server."""
    asked = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        " and application_name like 'durable%writer%'"
    )
    connection = await asyncpg.connect(cluster.url())
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval(asked) != count:
            await asyncio.sleep(0.005)
    await connection.close()


def test_an_answer_that_never_comes_of_a_batch_that_was_committed(cluster: Cluster) -> None:
    async def main() -> None:
        async with through_proxy(cluster) as (store, proxy):
            await store.append([opening("r1"), opening("r2"), opening("r3")])
            await store.claim(["r3"], 5)

            def cut(data: bytes) -> bytes:
                proxy.edit = bytes
                raise ConnectionResetError  # the server has committed: this is its answer

            proxy.edit = cut
            batch = [
                frame("r1", 1, data=b"once"), frame("r2", 1, 0, status="dead", error="E: x"),
                frame("r3", 1), opening("r4", waits=(wait("r4"),)),
            ]  # fmt: skip
            assert await store.append(batch) == {"r3"}
            assert [f.data for f in await store.read("r1", seq=1, limit_bytes=9)] == [b"once"]
            row = await store.get("r2")
            assert row is not None
            assert (row.status, row.error) == ("dead", "E: x")
            assert await store.get("r4") is not None
            assert not await store.append([frame("r1", 2), frame("r4", 1)])

    asyncio.run(main())


def test_a_connection_that_is_cut_before_the_commit(cluster: Cluster) -> None:
    """The server's process still waits inside the statement: it must be gone before the next."""

    async def main() -> None:
        async with through_proxy(cluster) as (store, proxy):
            await store.append([opening("r1"), opening("r2")])
            async with held(store, cluster, "r1"):
                writing = asyncio.create_task(
                    store.append([frame("r1", 1), frame("r2", 1), opening("r3")])
                )
                await until_waiting(cluster)
                proxy.cut()
                await asyncio.sleep(0.1)
                assert not writing.done()
            assert await writing == frozenset()
            frames = [len(await store.read(run, limit_bytes=9)) for run in ("r1", "r2", "r3")]
            assert frames == [2, 2, 1]

    asyncio.run(main())


def test_who_takes_the_run_meanwhile_has_it(cluster: Cluster) -> None:
    async def main() -> None:
        async with through_proxy(cluster) as (store, proxy):
            other = PostgresStore(cluster.address(store.address.schema))
            await other.open()
            await store.append([opening("r1"), opening("r2")])
            await store.release(["r1"])
            async with held(store, cluster, "r1"):
                writing = asyncio.create_task(store.append([frame("r1", 1), frame("r2", 1)]))
                await until_waiting(cluster)
                proxy.refusing = True
                proxy.cut()
                claiming = asyncio.create_task(other.claim(["r1"], 5))
                await asyncio.sleep(0.05)
            claimed = await claiming
            assert [run.run_id for run in claimed] == ["r1"]
            # The first statement may have been before the claim, or have ended with its process.
            proxy.refusing = False
            assert await writing <= {"r1"}
            assert await store.append([frame("r1", claimed[0].last_seq + 1)]) == {"r1"}
            end = frame("r1", claimed[0].last_seq + 1, epoch=claimed[0].epoch)
            assert not await other.append([end])
            await other.close()

    asyncio.run(main())


def test_a_server_that_says_nothing_is_given_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with through_proxy(cluster) as (store, proxy):
            assert not await store.append([opening()])
            monkeypatch.setattr("durable_endpoints.limits.POSTGRES_ANSWER_S", 0.3)
            proxy.stall()  # the connections there are; new ones go through
            assert await store.append([frame(first=1)]) == frozenset()
            # The reader's connection is a new one, and has the usual time.
            monkeypatch.setattr("durable_endpoints.limits.POSTGRES_ANSWER_S", 5.0)
            assert len(await store.read("r1", limit_bytes=99)) == 2
            # Stalled connections are not waited for at the end, either.
            monkeypatch.setattr("durable_endpoints.limits.POSTGRES_ANSWER_S", 0.3)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["kill", "immediate", "fast"])
def test_the_server_dies_and_comes_back(cluster: Cluster, how: str) -> None:
    async def main() -> None:
        store = PostgresStore(cluster.address(lease_ttl=60))  # longer than a start may take
        await store.open()
        assert not await store.append([opening()])
        if how == "kill":
            cluster.kill()
        else:
            cluster.stop(how)
        writing = asyncio.create_task(store.append([frame(first=1)]))
        with pytest.raises(StoreAway, match="does not answer"):
            await store.get("r1")
        async with asyncio.timeout(PATIENCE_S):
            while store.away is None:  # the write has not waited for as long yet
                await asyncio.sleep(0.01)
        assert "does not answer" in store.away
        assert not writing.done()
        cluster.start()
        assert await writing == frozenset()
        assert store.away is None
        row = await store.get("r1")
        assert row is not None
        assert row.last_seq == 1
        await store.close()

    asyncio.run(main())


def test_i1_i2_whatever_is_acknowledged_is_there_once(cluster: Cluster) -> None:
    """Random batches while the server's processes are ended, and the connections cut, at random."""
    chance = random.Random(7)
    rounds = 300

    async def main() -> None:
        async with through_proxy(cluster) as (store, proxy):
            stop = asyncio.Event()
            ends: dict[str, int] = {}
            troubles: list[None] = []

            async def trouble() -> None:
                connection = await asyncpg.connect(cluster.url())
                while not stop.is_set():
                    await asyncio.sleep(0.02 + chance.random() * 0.1)
                    troubles.append(None)
                    if chance.random() < 0.5:
                        proxy.cut()
                    else:
                        await connection.execute(
                            "select pg_terminate_backend(pid) from pg_stat_activity"
                            " where application_name like 'durable%writer%'"
                        )
                await connection.close()

            making = asyncio.create_task(trouble())
            for number in itertools.count():
                if number >= rounds and len(troubles) > 20:
                    break
                old = chance.sample(sorted(ends), min(len(ends), 4))
                batch: list[Frame] = [frame(run, ends[run] + 1, data=b"%d" % number) for run in old]
                new = f"r{number:05}"
                batch.append(frame(new, opening=record(new), data=b"%d" % number))
                assert await store.append(batch) == frozenset()
                ends |= {run: ends[run] + 1 for run in old} | {new: 0}
            stop.set()
            await making
            for run_id, last in ends.items():
                frames = []
                while found := await store.read(run_id, seq=len(frames), limit_bytes=10**6):
                    frames += found
                assert [f.first_seq for f in frames] == list(range(last + 1))

    asyncio.run(main())


# --- answers that are no answer


def test_a_value_that_cannot_be_stored_sets_its_run_aside_and_no_other(
    postgres: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = PostgresStore(postgres())
        await store.open()
        await store.append([opening("r1"), opening("r2")])
        bad = [
            frame("r1", 1), frame("r2", 1, error="lone \ud800 surrogate"),
            opening("r3"),
            frame("r4", opening=record("r4"), offset=2**70),
        ]  # fmt: skip
        assert await store.append(bad) == {"r2", "r4"}
        assert store.failed is None
        assert not await store.append([frame("r1", 2), frame("r3", 1)])
        await store.close()

    asyncio.run(main())
    assert "run r2 holds what cannot be stored" in caplog.text


def test_deadlocks_and_a_full_disk_are_tried_again(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.DiskFullError("could not extend file"),
        asyncpg.TooManyConnectionsError("too many connections"),
        asyncpg.LockNotAvailableError("lock timeout"),
    ]
    real = postgres_append._write

    async def failing(*args: object) -> frozenset[str]:
        if errors:
            raise errors.pop(0)
        return await real(*args)  # type: ignore[arg-type]

    async def main() -> None:
        store = PostgresStore(postgres())
        await store.open()
        monkeypatch.setattr(postgres_append, "_write", failing)
        assert await store.append([opening()]) == frozenset()
        assert not errors
        await store.close()

    asyncio.run(main())


def test_an_error_that_stays_ends_the_store(postgres: Callable[[], str]) -> None:
    async def main() -> None:
        store = PostgresStore(postgres())
        await store.open()
        connection = await asyncpg.connect(store.address.dsn)
        await connection.execute(f"drop schema {store.address.schema} cascade")
        await connection.close()
        with pytest.raises(StoreFailed, match="UndefinedTableError"):
            await store.append([opening()])
        assert store.failed is not None
        with pytest.raises(StoreFailed):
            await store.append([opening()])
        await store.close()

    asyncio.run(main())


def test_a_store_is_of_one_event_loop_and_one_process(postgres: Callable[[], str]) -> None:
    store = PostgresStore(postgres())
    with pytest.raises(StoreFailed, match="not open"):
        asyncio.run(store.append([opening()]))
    runner = asyncio.Runner()
    runner.run(store.open())
    with pytest.raises(StoreFailed, match="with TestClient"):
        asyncio.run(store.append([opening()]))
    runner.run(store.close())
    runner.close()
