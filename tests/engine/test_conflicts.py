"""Concurrency keys: of one route and key one run is at work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, MemoryStore, durable, sleep
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
                await asyncio.sleep(0.02)
            assert [(await task).json()["text"] for task in tasks] == ["a", "b", "c"]
            begun = list(dict.fromkeys(house.at_work))  # a suspended handler begins anew
            assert begun == ["a", "b", "c"]

    asyncio.run(main())
