"""A request with an Idempotency-Key is cut while its run is on its way to the store (I7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.engine.engine import Engine
from durable_endpoints.records import Frame
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query

KEY = {"idempotency-key": "k"}
PATIENCE_S = 20


class Held(MemoryStore):
    """Its writes stand still until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`."""
        self.asked.set()
        await self.let_go.wait()
        return await super().append(batch)


class Shop:
    """An app whose payment waits until it is let through, and a client of it."""

    def __init__(self) -> None:
        self.store = Held()
        self.failures: list[str] = []
        self.engine = Engine(self.store, on_failure=self.failures.append)
        self.through = asyncio.Event()
        route = Route("/pay", durable(self._pay), methods=["POST"])
        self.app = DurableMiddleware(Starlette(routes=[route]), engine=self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def _pay(self, request: Request) -> Response:
        await self.through.wait()
        return JSONResponse((await request.body()).decode())

    async def pay(self) -> httpx.Response:
        return await self._http.post("/pay", headers=KEY, content=b"7")

    async def cut_one(self) -> None:
        """Have a request cancelled from outside while its first commit is in flight."""
        request = asyncio.create_task(self.pay())
        await self.store.asked.wait()
        request.cancel()
        await asyncio.wait([request])

    async def again(self, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[httpx.Response]:
        """Send the request again; return it when it is about to ask for its key."""
        asks, reserve = asyncio.Event(), self.engine.keys.reserve

        async def asking(*place: Any) -> str | None:
            asks.set()
            return await reserve(*place)

        monkeypatch.setattr(self.engine.keys, "reserve", asking)
        request = asyncio.create_task(self.pay())
        await asks.wait()
        return request


@asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    async with asyncio.timeout(PATIENCE_S):
        one = Shop()
        yield one
        one.store.let_go.set()
        await one.app.host.close()


def test_i7_who_sends_a_request_again_that_was_cut_is_led_to_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with shop() as one:
            await one.cut_one()
            again = await one.again(monkeypatch)
            one.store.let_go.set()
            one.through.set()
            assert (await again).json() == "7"
            assert len(await one.store.list(Query())) == 1
            assert not one.failures

    asyncio.run(main())
