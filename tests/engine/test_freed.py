"""What a run leaves in memory once it is at its end: nothing, and at once.

What only the garbage collector finds costs each later request a part of its search.
"""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from durable_endpoints import DurableMiddleware, Engine, durable, step
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import PATIENCE_S

REQUESTS = 5


@step
async def double(number: int) -> int:
    return 2 * number


@step
async def words() -> AsyncIterator[str]:
    for word in ("one ", "two ", "three "):
        yield word


@durable
async def numbers(request: Request) -> Response:
    return JSONResponse([await double(number) for number in range(3)])


@durable
async def spoken(request: Request) -> Response:
    return StreamingResponse(words())


@durable
async def failing(request: Request) -> Response:
    await double(1)
    return JSONResponse({}, 500)


def alive() -> int:
    return sum(isinstance(one, LiveRun) for one in gc.get_objects())


@pytest.mark.parametrize("path", ["/numbers", "/spoken", "/failing"])
def test_runs_that_are_over_are_freed_without_the_garbage_collector(path: str) -> None:
    app = Starlette(
        routes=[Route("/numbers", numbers), Route("/spoken", spoken), Route("/failing", failing)],
        middleware=[Middleware(DurableMiddleware, engine=Engine(MemoryStore()))],
    )

    def ask(client: httpx.Client) -> None:
        assert "durable-run-id" in client.get(path).headers

    with TestClient(app) as client:
        ask(client)  # what is kept of the last request for the next one is not counted
        gc.collect()
        gc.disable()
        try:
            before, until = alive(), time.monotonic() + PATIENCE_S
            for _ in range(REQUESTS):
                ask(client)
            while (left := alive()) > before and time.monotonic() < until:
                time.sleep(0.01)  # the last tasks of the server are about to end
            assert left <= before
        finally:
            gc.enable()
