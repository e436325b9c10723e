"""Concurrency keys: of one route and key one run is at work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, MemoryStore, Retry, durable, sleep, step
from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores.protocol import Query
from tests.engine.worlds import PATIENCE_S

BASE = "/_durable/runs"


class House:
    """An app whose endpoints exclude each other, and a client of it."""

    def __init__(self, store: MemoryStore | None = None, grace_s: float = 60) -> None:
        self.engine = Engine(store or MemoryStore(), suspend_grace_s=grace_s)
        self.gate = asyncio.Event()
        self.at_work: list[str] = []
        app = FastAPI()
        for policy in ("attach", "queue", "replace", "reject"):
            app.post(f"/{policy}/{{thread}}")(self._endpoint(policy))
        app.add_middleware(DurableMiddleware, engine=self.engine)  # type: ignore[arg-type]
        self.app = app

    def _endpoint(self, policy: str) -> object:
        @durable(concurrency_key="{thread}", on_conflict=policy)
        async def endpoint(thread: str, text: str, nap: float = 0) -> dict[str, str]:
            self.at_work.append(text)
            if nap:
                await sleep(nap)
            else:
                await self.gate.wait()
            return {"text": text}

        return endpoint

    @asynccontextmanager
    async def open(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
        await self.engine.close()

    async def until(self, *texts: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.at_work != list(texts):
                await asyncio.sleep(0.002)


def test_a_second_request_gets_the_first_ones_response() -> None:
    async def main() -> None:
        house = House()
        async with house.open() as client:
            first = asyncio.create_task(client.post("/attach/t1?text=a"))
            await house.until("a")
            second = asyncio.create_task(client.post("/attach/t1?text=b"))
            other = asyncio.create_task(client.post("/attach/t2?text=c"))
            await house.until("a", "c")
            house.gate.set()
            answers = [await first, await second, await other]
            assert [answer.json()["text"] for answer in answers] == ["a", "a", "c"]
            ids = [answer.headers["durable-run-id"] for answer in answers]
            assert ids[0] == ids[1] != ids[2]
            assert (await client.post("/attach/t1?text=d")).json() == {"text": "d"}

    asyncio.run(main())


def test_a_second_request_is_refused_with_the_first_ones_id() -> None:
    async def main() -> None:
        house = House()
        async with house.open() as client:
            first = asyncio.create_task(client.post("/reject/t1?text=a"))
            await house.until("a")
            refused = await client.post("/reject/t1?text=b")
            assert refused.status_code == 409
            house.gate.set()
            assert refused.json()["run_id"] == (await first).headers["durable-run-id"]

    asyncio.run(main())


def test_a_second_request_replaces_the_first() -> None:
    async def main() -> None:
        house = House()
        async with house.open() as client:
            first = asyncio.create_task(client.post("/replace/t1?text=a"))
            await house.until("a")
            second = asyncio.create_task(client.post("/replace/t1?text=b"))
            assert (await first).status_code == 409
            await house.until("a", "b")
            house.gate.set()
            assert (await second).json() == {"text": "b"}

    asyncio.run(main())


@pytest.mark.parametrize("grace_s", [0, 60])
def test_requests_wait_for_their_turn_in_order(grace_s: float) -> None:
    async def main() -> None:
        house = House(grace_s=grace_s)
        async with house.open() as client:
            tasks = []
            for text in "abc":
                url = f"/queue/t1?text={text}&nap=0.1"
                tasks.append(asyncio.create_task(client.post(url)))
                async with asyncio.timeout(PATIENCE_S):
                    while len(await house.engine.list(Query())) < len(tasks):
                        await asyncio.sleep(0.001)
            assert [(await task).json()["text"] for task in tasks] == ["a", "b", "c"]
            begun = list(dict.fromkeys(house.at_work))  # a suspended handler begins anew
            assert begun == ["a", "b", "c"]

    asyncio.run(main())


def test_requests_wait_in_the_order_in_which_they_came_whatever_their_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids of one millisecond are in any order, and a clock may be set back."""
    numbers = iter(range(99, 0, -1))
    monkeypatch.setattr(
        "durable_endpoints.engine.engine.new_run_id",
        lambda _: f"{next(numbers):08x}-0000-7000-8000-000000000000",
    )

    async def main() -> None:
        house = House()
        async with house.open() as client:
            tasks = []
            for text in "abcd":
                tasks.append(asyncio.create_task(client.post(f"/queue/t1?text={text}")))
                while len(house.engine.runs) < len(tasks) or house.engine.waking.busy:
                    await asyncio.sleep(0.001)
                await house.until("a")  # the first one's task may begin a moment later
            house.gate.set()
            assert [(await task).json()["text"] for task in tasks] == list("abcd")
            assert house.at_work == list("abcd")

    asyncio.run(main())


class Slow(MemoryStore):
    """Lets something happen between a look at a queue and its answer."""

    meanwhile: Callable[[], None] | None = None

    async def list(self, query: Query) -> list[RunRecord]:
        rows = await super().list(query)
        if query.concurrency_key is not None and self.meanwhile is not None:
            self.meanwhile, meanwhile = None, self.meanwhile
            meanwhile()
        return rows


def test_a_run_that_is_just_leaving_memory_gets_its_turn() -> None:
    async def main() -> None:
        store = Slow()
        house = House(store)
        async with house.open() as client:
            first = asyncio.create_task(client.post("/queue/t1?text=a"))
            await house.until("a")
            second = asyncio.create_task(client.post("/queue/t1?text=b"))
            while len(house.engine.runs) < 2:
                await asyncio.sleep(0.001)
            waiting = list(house.engine.runs.values())[1]
            # Its task may begin a moment later, and only then looks whether it is its turn.
            while not waiting.waits.open or house.engine.waking.busy:
                await asyncio.sleep(0.001)
            await waiting.durable(waiting.seq - 1)
            left = []

            def leave() -> None:
                waiting.waits._check_idle(waiting.seq, hurried=False)
                left.append(waiting.resting)

            # The first one ends. Whoever passes its turn on finds the second neither awake, by the
            # time it has looked, nor suspended, by what it has seen.
            store.meanwhile = leave
            house.gate.set()
            assert (await first).json() == {"text": "a"}
            async with asyncio.timeout(PATIENCE_S):
                assert (await second).json() == {"text": "b"}
            assert left == [True]

    asyncio.run(main())


def test_a_dead_run_does_not_come_back_beside_another_one() -> None:
    async def main() -> None:
        house = House()
        mended = False

        @step(retry=Retry(attempts=1))
        async def fails() -> None:
            if not mended:
                raise ConnectionError("not yet")

        @durable(concurrency_key="{thread}", on_conflict="reject")
        async def dies(thread: str, wait: bool = False) -> None:
            if wait:
                house.at_work.append("other")
            await (house.gate.wait() if wait else fails())

        house.app.post("/dies/{thread}")(dies)
        async with house.open() as client:
            with pytest.raises(ConnectionError):
                await client.post("/dies/t1")
            async with asyncio.timeout(PATIENCE_S):
                while not await house.engine.list(Query(("dead",))):
                    await asyncio.sleep(0.001)
            (dead,) = await house.engine.list(Query())
            assert (dead.status, dead.concurrency_key) == ("dead", "t1")
            run_id = dead.run_id
            other = asyncio.create_task(client.post("/dies/t1?wait=true"))
            await house.until("other")
            refused = await client.post(f"{BASE}/{run_id}/retry")
            assert refused.status_code == 503
            assert "is at work on 't1'" in refused.json()["detail"]
            house.gate.set()
            assert (await other).status_code == 200
            other_id = other.result().headers["durable-run-id"]
            async with asyncio.timeout(PATIENCE_S):  # its answer may be out before its end
                while (await client.get(f"{BASE}/{other_id}")).json()["status"] != "completed":
                    await asyncio.sleep(0.001)
            mended = True
            assert (await client.post(f"{BASE}/{run_id}/retry")).status_code == 202
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get(f"{BASE}/{run_id}")).json()["status"] != "completed":
                    await asyncio.sleep(0.005)

    asyncio.run(main())


class SlowCommits(MemoryStore):
    """Nothing is written before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        self.waiting.set()
        await self.go.wait()
        return await super().append(batch)


def test_a_run_whose_request_is_cancelled_before_its_first_commit_keeps_its_key() -> None:
    """It is let go here, but its beginning is still written: somebody goes on with it."""
    store = SlowCommits()
    house = House(store)

    async def main() -> None:
        async with house.open() as client, asyncio.timeout(PATIENCE_S):
            first = asyncio.create_task(client.post("/reject/t?text=one"))
            await store.waiting.wait()
            await house.until("one")
            first.cancel()
            await asyncio.wait({first})
            second = asyncio.create_task(client.post("/reject/t?text=two"))
            for _ in range(50):
                await asyncio.sleep(0)
            store.go.set()
            assert (await second).status_code == 409
            assert house.at_work == ["one"]
            house.gate.set()

    asyncio.run(main())
