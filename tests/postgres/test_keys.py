"""Keys over several nodes: of one concurrency key one run is at work, of one request one run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, durable
from durable_endpoints.records import Frame
from durable_endpoints.stores.postgres import PostgresStore
from durable_endpoints.stores.protocol import Query
from tests.conformance.made import frame, opening, record
from tests.engine.worlds import PATIENCE_S
from tests.postgres.conftest import Nodes
from tests.postgres.test_nodes import deadlocks, execute

POLICIES = ("attach", "queue", "replace", "reject")


class Work:
    """What the handlers of all nodes do, and whether two of a key ever do it side by side."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.at_work: set[str] = set()
        self.beside: list[tuple[str, set[str]]] = []
        self.gate = asyncio.Event()

    @asynccontextmanager
    async def at(self, text: str) -> AsyncIterator[None]:
        self.begun.append(text)
        if self.at_work:
            self.beside.append((text, set(self.at_work)))
        self.at_work.add(text)
        try:
            yield
        finally:
            self.at_work.discard(text)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.begun) < count:
                await asyncio.sleep(0.002)


class House:
    """One node: an app whose endpoints exclude each other, and a client of it."""

    def __init__(self, address: str, work: Work, grace_s: float) -> None:
        self.store = PostgresStore(address)
        self.engine = Engine(self.store, suspend_grace_s=grace_s)
        self.work = work
        app = FastAPI()
        for policy in POLICIES:
            app.post(f"/{policy}/{{thread}}")(self._endpoint(policy))
        app.post("/plain")(self._plain())
        app.add_middleware(DurableMiddleware, engine=self.engine)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)

    def _endpoint(self, policy: str) -> Callable[..., Awaitable[dict[str, str]]]:
        @durable(concurrency_key="{thread}", on_conflict=policy)
        async def endpoint(thread: str, text: str, nap: float = 0) -> dict[str, str]:
            async with self.work.at(text):
                if nap:
                    await asyncio.sleep(nap)
                else:
                    await self.work.gate.wait()
            return {"text": text}

        return endpoint

    def _plain(self) -> Callable[..., Awaitable[dict[str, str]]]:
        @durable
        async def endpoint(text: str) -> dict[str, str]:
            async with self.work.at(text):
                await asyncio.sleep(0.05)
            return {"text": text}

        return endpoint

    async def ask(self, path: str, **headers: str) -> httpx.Response:
        return await self.client.post(path, headers=headers)

    async def open(self) -> None:
        """Open the engine before the first request, and let it recover."""
        answer = await self.client.get("/_durable/runs/none")
        assert answer.status_code == 404

    async def crash(self) -> None:
        """End the process: nothing is said to anybody, but the lease is over at once."""
        node = self.store.node
        engine = self.engine
        engine.leaving = True
        runs = list(engine.runs.values())
        tasks = [*engine.tasks, *(run.task for run in runs if run.task is not None)]
        for run in runs:
            run.fence("the process is gone")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=PATIENCE_S)
        assert self.store._lease is not None
        await self.store._lease.stop()
        await execute(
            self.store, "update nodes set lease_until = now() - interval '1 s' where node = $1",
            node,
        )  # fmt: skip

    async def close(self) -> None:
        await self.client.aclose()
        await self.engine.close()


@asynccontextmanager
async def houses(
    postgres: Callable[[], str], count: int = 2, grace_s: float = 60
) -> AsyncIterator[tuple[Work, list[House]]]:
    address, work = postgres(), Work()
    made = [House(address, work, grace_s) for _ in range(count)]
    try:
        for house in made:
            await house.open()
            await house.ask("/plain?text=warm")  # its connections are there from now on
        work.begun.clear()
        yield work, made
    finally:
        work.gate.set()
        for house in made:
            await house.close()


def asking(house: House, path: str, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(house.ask(path, **headers))


async def opened(house: House, count: int) -> None:
    """Wait until so many runs are durable: requests are in order then."""
    async with asyncio.timeout(PATIENCE_S):
        name = "POST /queue/{thread}"
        while len(await house.store.list(Query(name=name))) < count:
            await asyncio.sleep(0.002)


async def attached(made: list[House], count: int) -> None:
    """Wait until so many requests follow the run of another request, on any node."""

    def readers() -> int:
        engines = [house.engine for house in made]
        runs = {id(run): run for e in engines for run in (*e.runs.values(), *e.idle.values())}
        return sum(run.readers for run in runs.values())

    async with asyncio.timeout(PATIENCE_S):
        while readers() < count:
            await asyncio.sleep(0.002)


def id_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["durable-run-id"])


# --- the store


def keyed(run_id: str, key: str = "k", *, exclusive: bool = False, **more: Any) -> Frame:
    row = record(run_id, concurrency_key=key, **more)
    row.exclusive = exclusive
    return frame(run_id, opening=row)


async def queue(store: PostgresStore, key: str = "k", principal: str | None = None) -> list[str]:
    asked = Query(name="POST /chat", principal=principal, concurrency_key=key)
    return [run.run_id for run in await store.list(asked)]


def test_an_exclusive_opening_is_refused_while_there_is_another(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            assert not await one.append([keyed("r1", exclusive=True), opening("x1")])
            refused = await two.append([keyed("r2", exclusive=True), opening("x2")])
            assert refused == {"r2"}
            assert await two.get("r2") is None
            assert not await two.append(
                [
                    keyed("r3", "other", exclusive=True),
                    keyed("r4", exclusive=True, principal="ann"),
                    keyed("r5", exclusive=True, principal=""),
                ]
            )
            for status in ("suspended", "diverged"):
                (run,) = await one.claim(["r1"], 5)
                assert not await one.append(
                    [frame("r1", run.last_seq + 1, epoch=run.epoch, status=status)]
                )
                assert await two.append([keyed("r6", exclusive=True)]) == {"r6"}
            (run,) = await one.claim(["r1"], 5)
            done = frame("r1", run.last_seq + 1, epoch=run.epoch, status="cancelled")
            assert not await one.append([done])
            assert not await two.append([keyed("r6", exclusive=True)])

    asyncio.run(main())


def test_a_dead_run_does_not_come_back_beside_another_one(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes() as (one, two):
            assert not await one.append([keyed("r1", exclusive=True)])
            assert not await one.append([frame("r1", 1, status="dead", frees=True)])
            assert not await two.append([keyed("r2", exclusive=True)])
            (dead,) = await one.claim(["r1"], 5, dead=True)
            back = frame("r1", dead.last_seq + 1, epoch=dead.epoch)
            assert await one.append([opening("x1"), back, opening("x2")]) == {"r1"}
            assert [await one.get(run_id) is None for run_id in ("x1", "x2")] == [False, False]
            assert not await two.append([frame("r2", 1, status="completed", frees=True)])
            assert not await one.append([back])

    asyncio.run(main())


def test_many_nodes_open_at_the_same_moment_and_one_is_there(nodes: Nodes) -> None:
    """In any order of the keys in a batch: no two nodes wait for each other."""

    async def main() -> None:
        async with nodes(4) as stores:
            before = await deadlocks(stores[0])
            for number in range(25):
                keys = [f"k{number}-{i}" for i in range(6)]
                batches = []
                for n, _ in enumerate(stores):
                    order = keys[n:] + keys[:n] if n % 2 else [*reversed(keys)]
                    ids = [(f"n{n}-{key}", key) for key in order]
                    batches.append([keyed(*pair, exclusive=True) for pair in ids])
                done = await asyncio.gather(
                    *(store.append(batch) for store, batch in zip(stores, batches, strict=True))
                )
                assert sum(len(fenced) for fenced in done) == 3 * len(keys)
                for key in keys:
                    assert len(await queue(stores[0], key)) == 1
            assert await deadlocks(stores[0]) == before

    asyncio.run(main())


def test_the_order_of_a_queue_is_that_of_the_commits_not_of_the_ids(nodes: Nodes) -> None:
    async def main() -> None:
        async with nodes(3) as stores:
            assert not await stores[0].append([keyed("r9"), keyed("r5"), keyed("q7", "other")])
            assert not await stores[1].append([keyed("r1", principal="ann"), keyed("r2")])
            assert not await stores[2].append([keyed("r3")])
            for store in stores:
                assert await queue(store) == ["r9", "r5", "r2", "r3"]
                assert await queue(store, principal="ann") == ["r1"]
            assert not await stores[0].append([frame("r9", 1, status="completed")])
            assert await queue(stores[1]) == ["r5", "r2", "r3"]

    asyncio.run(main())


def test_nobody_gets_before_a_run_that_was_seen(nodes: Nodes) -> None:
    """However long the commits take: what a node has seen of a queue stays its beginning."""

    async def main() -> None:
        async with nodes(4) as stores:
            seen: list[list[str]] = []

            async def work(number: int, store: PostgresStore) -> None:
                for i in range(60):
                    run_id = f"{9 - number}-{i:02}"
                    assert not await store.append([keyed(run_id), opening(f"x{run_id}")])
                    asked = Query(name="POST /chat", concurrency_key="k", limit=500)
                    seen.append([run.run_id for run in await store.list(asked)])
                    assert run_id in seen[-1]

            await asyncio.gather(*(work(n, store) for n, store in enumerate(stores)))
            final = max(seen, key=len)
            assert len(final) == 240
            assert all(final[: len(some)] == some for some in seen)

    asyncio.run(main())


def test_the_next_in_the_queue_is_due_with_the_end_of_the_one_before(nodes: Nodes) -> None:
    """In one transaction: whatever becomes of the node, somebody finds it."""

    async def main() -> None:
        async with nodes() as (one, two):
            for run_id, key in (("r9", "k"), ("r1", "k"), ("r5", "k"), ("x1", "x"), ("x2", "x")):
                assert not await one.append([keyed(run_id, key)])
            turn, other = '[{"kind":"turn","name":"turn"}]', '[{"kind":"timer","name":"sleep"}]'
            for run_id, waiting in (("r1", turn), ("r5", turn), ("x2", other)):
                rests = frame(run_id, 1, status="suspended", wake_at_ms=10**15, waiting=waiting)
                assert not await one.append([rests])
            ends = [frame(i, 1, status="completed", frees=True) for i in ("r9", "x1")]
            assert not await one.append([*ends, opening("y1")])
            due = await two.list(Query(("suspended",), due_ms=5))
            assert [run.run_id for run in due] == ["r1"]
            # One that waits behind another one is cancelled: nobody is due.
            (run,) = await two.claim(["r5"], 5)
            cancelled = frame("r5", run.last_seq + 1, epoch=run.epoch, status="cancelled")
            cancelled.frees = True
            (first,) = await two.claim(["r1"], 5)
            rests = frame("r1", first.last_seq + 1, epoch=2, status="suspended", waiting=other)
            assert not await two.append([rests, cancelled])
            assert await one.list(Query(("suspended",), due_ms=5)) == []

    asyncio.run(main())


# --- requests


def test_requests_at_the_same_moment_on_two_nodes_are_one_run(
    postgres: Callable[[], str],
) -> None:
    async def main() -> None:
        async with houses(postgres, 3) as (work, made):
            for number in range(8):
                work.gate.clear()
                tasks = [asking(h, f"/attach/t{number}?text={number}") for h in made * 2]
                await attached(made, len(tasks) - 1)  # it does not end before all have come
                work.gate.set()
                ids = {id_of(await task) for task in tasks}
                assert len(ids) == 1
            assert work.begun == [str(number) for number in range(8)]

    asyncio.run(main())


def test_a_request_is_refused_with_the_id_of_another_nodes_run(
    postgres: Callable[[], str],
) -> None:
    async def main() -> None:
        async with houses(postgres) as (work, made):
            tasks = [asking(house, "/reject/t1?text=a") for house in made * 2]
            done, (first,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED), [None]
            del first
            while len(done[0]) < 3:
                done = await asyncio.wait(tasks, timeout=0.01)
            work.gate.set()
            answers = [await task for task in tasks]
            (begun,) = [answer for answer in answers if answer.status_code == 200]
            refused = [answer for answer in answers if answer is not begun]
            assert {answer.status_code for answer in refused} == {409}
            assert {answer.json()["run_id"] for answer in refused} == {id_of(begun)}
            assert work.begun == ["a"]

    asyncio.run(main())


def test_requests_on_two_nodes_replace_each_other(postgres: Callable[[], str]) -> None:
    async def main() -> None:
        async with houses(postgres, 3) as (work, made):
            first = asking(made[0], "/replace/t1?text=first")
            await work.until(1)
            tasks = [asking(house, f"/replace/t1?text={n}") for n, house in enumerate(made * 2)]
            assert (await first).status_code == 409
            async with asyncio.timeout(PATIENCE_S):
                while sum(task.done() for task in tasks) < 5:
                    await asyncio.sleep(0.005)
            work.gate.set()
            answers = [await task for task in tasks]
            assert sorted(answer.status_code for answer in answers) == [200] + 5 * [409]
            assert not work.beside

    asyncio.run(main())


@pytest.mark.parametrize("grace_s", [0, 0.05, 60])
def test_requests_on_three_nodes_wait_for_their_turn_in_order(
    postgres: Callable[[], str], grace_s: float
) -> None:
    """Some wait in memory, some suspended, some are just leaving memory when their turn comes."""

    async def main() -> None:
        async with houses(postgres, 3, grace_s) as (work, made):
            tasks = []
            for number in range(12):
                url = f"/queue/t1?text={number:02}&nap=0.03"
                tasks.append(asking(made[number % 3], url))
                await opened(made[0], number + 1)
            answers = [(await task).json()["text"] for task in tasks]
            assert answers == [f"{number:02}" for number in range(12)]
            assert work.begun == answers
            assert not work.beside

    asyncio.run(main())


@pytest.fixture
def skewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Make the ids of later runs smaller: what a clock that was set back does."""
    numbers = iter(range(10**6, 0, -1))
    made: list[float] = []

    def new_run_id(now_ms: int) -> str:
        number = next(numbers)
        made.append(number)
        return f"{number:08x}-0000-7000-8000-000000000000"

    monkeypatch.setattr("durable_endpoints.engine.engine.new_run_id", new_run_id)
    yield made


def test_a_queue_needs_no_clocks(postgres: Callable[[], str], skewed: list[float]) -> None:
    async def main() -> None:
        async with houses(postgres, 2) as (work, made):
            tasks = []
            for number in range(6):
                tasks.append(asking(made[number % 2], f"/queue/t1?text={number}&nap=0.05"))
                await opened(made[0], number + 1)
            assert [(await task).json()["text"] for task in tasks] == list("012345")
            assert work.begun == list("012345")
            assert not work.beside

    asyncio.run(main())
    assert len(skewed) >= 6


@pytest.mark.parametrize("grace_s", [0, 60])
def test_i16_the_next_in_the_queue_goes_on_when_the_holders_node_is_gone(
    postgres: Callable[[], str], grace_s: float
) -> None:
    async def main() -> None:
        async with houses(postgres, 3, grace_s) as (work, made):
            first = asking(made[0], "/queue/t1?text=a")
            await work.until(1)
            second = asking(made[0], "/queue/t1?text=b")
            await opened(made[0], 2)
            third = asking(made[1], "/queue/t1?text=c")
            await opened(made[0], 3)
            await made[0].crash()
            await work.until(2)  # taken over by another node
            assert work.begun == ["a", "a"]
            work.gate.set()
            async with asyncio.timeout(PATIENCE_S):
                assert (await third).json() == {"text": "c"}
            assert work.begun == ["a", "a", "b", "c"]
            assert not work.beside
            for task in (first, second):  # their server is gone
                task.cancel()
            await asyncio.gather(first, second, return_exceptions=True)

    asyncio.run(main())


def test_a_waiting_run_is_cancelled_and_the_queue_goes_on(postgres: Callable[[], str]) -> None:
    async def main() -> None:
        async with houses(postgres, 2, 0) as (work, made):
            tasks = [asking(made[0], "/queue/t1?text=a")]
            await work.until(1)
            for number, text in enumerate("bc"):
                tasks.append(asking(made[number], f"/queue/t1?text={text}"))
                await opened(made[0], number + 2)
            name = "POST /queue/{thread}"
            _, waits, _ = await made[1].store.list(Query(name=name, concurrency_key="t1"))
            answer = await made[1].client.post(f"/_durable/runs/{waits.run_id}/cancel")
            assert answer.status_code == 202
            work.gate.set()
            first, second, third = [await task for task in tasks]
            assert (first.json(), third.json()) == ({"text": "a"}, {"text": "c"})
            assert second.status_code >= 400
            assert work.begun == ["a", "c"]

    asyncio.run(main())


# --- idempotency keys


def test_i7_one_idempotency_key_at_the_same_moment_on_all_nodes_is_one_run(
    postgres: Callable[[], str],
) -> None:
    async def main() -> None:
        async with houses(postgres, 3) as (work, made):
            for number in range(15):
                key = {"idempotency-key": f"k{number}"}
                tasks = [asking(house, f"/plain?text={number}", **key) for house in made * 3]
                ids = {id_of(await task) for task in tasks}
                assert len(ids) == 1
            assert work.begun == [str(number) for number in range(15)]
            other = await made[1].ask("/plain?text=other", **{"idempotency-key": "k3"})
            assert other.status_code == 422

    asyncio.run(main())
