"""A reader of an event stream comes too early: it is told to come back, wherever it asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.engine.engine import Engine
from durable_endpoints.errors import Fenced, StoreAway
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.memory import MemoryStore
from tests.surface.wire import is_problem, run_of

SSE = {"accept": "text/event-stream"}


class Away(MemoryStore):
    """Cannot be reached while it is away."""

    away = False

    async def get(self, run_id: str) -> RunRecord | None:
        """See `Store.get`."""
        if self.away:
            raise StoreAway("the database is away")
        return await super().get(run_id)


@durable
async def hello() -> str:
    return "hello"


@asynccontextmanager
async def finished() -> AsyncIterator[tuple[httpx.AsyncClient, str, Away]]:
    """Give a client, a finished run, and the store."""
    store = Away()
    engine = Engine(store)
    app = FastAPI()
    app.api_route("/hello", methods=["GET", "POST"])(hello)
    app.add_middleware(DurableMiddleware, engine=engine)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http, run_of(await http.get("/hello")), store
    await engine.close()


def is_told_to_come_back(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text == "retry: 1000\n\n"


WHERE = [("GET", "/_durable/runs/{}/stream"), ("GET", "/hello"), ("POST", "/hello")]


@pytest.mark.parametrize(("method", "path"), WHERE)
def test_while_the_store_is_away(method: str, path: str) -> None:
    async def main() -> None:
        async with finished() as (http, run_id, store):
            store.away = True
            headers = SSE | {"last-event-id": f"{run_id}:0-00000000"}
            is_told_to_come_back(await http.request(method, path.format(run_id), headers=headers))

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path"), WHERE)
def test_while_the_run_goes_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    async def elsewhere(*_: object, **__: object) -> int:
        raise Fenced("another process commits for this run")

    monkeypatch.setattr("durable_endpoints.asgi.routes.resolve", elsewhere)

    async def main() -> None:
        async with finished() as (http, run_id, _):
            headers = SSE | {"last-event-id": f"{run_id}:0-00000000"}
            is_told_to_come_back(await http.request(method, path.format(run_id), headers=headers))
            plain = await http.get(f"/_durable/runs/{run_id}/stream")
            is_problem(plain, 503, "interrupted")

    asyncio.run(main())
