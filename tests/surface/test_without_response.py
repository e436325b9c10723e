"""Runs from which no response will come: nobody is sent away to ask again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import Response

from durable_endpoints import DurableMiddleware, durable, wait_for_signal
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import start
from durable_endpoints.stores.memory import MemoryStore
from tests.surface.wire import events_of, is_problem

SSE = {"accept": "text/event-stream"}
ASYNC = {"prefer": "respond-async"}
PATIENCE_S = 10


@durable
async def fails() -> None:
    raise ValueError("no")


@durable
async def waits() -> str:
    return str(await wait_for_signal("go"))


@durable
async def says_nothing() -> Response:
    return Response()


@durable
async def adds(a: int, b: int) -> int:
    return a + b


class House:
    """An app, and a client of it."""

    def __init__(self) -> None:
        self.engine = Engine(MemoryStore())
        app = FastAPI()
        for endpoint in (fails, waits, says_nothing):
            app.post(f"/{endpoint.__name__}")(endpoint)
        app.add_middleware(DurableMiddleware, engine=self.engine)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def begin(self, path: str, key: str = "k") -> str:
        headers = ASYNC | {"idempotency-key": key}
        run_id: str = (await self.http.post(path, headers=headers)).headers["durable-run-id"]
        return run_id

    async def get(self, run_id: str, what: str, **headers: str) -> httpx.Response:
        return await self.http.get(f"/_durable/runs/{run_id}/{what}", headers=headers)

    async def cancel(self, run_id: str) -> None:
        assert (await self.http.post(f"/_durable/runs/{run_id}/cancel")).is_success

    async def ended(self, path: str) -> str:
        run_id = await self.begin(path)
        if path == "/waits":
            await self.cancel(run_id)
        while not (await self.engine.observe(run_id)).ended:
            await asyncio.sleep(0.001)
        return run_id


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with asyncio.timeout(PATIENCE_S):
        one = House()
        async with one.http:
            yield one
        await one.engine.close()


NONE = [("/fails", 500, "run-failed"), ("/waits", 409, "run-cancelled")]


@pytest.mark.parametrize(("path", "status", "kind"), NONE)
def test_its_stream_is_the_same_problem_as_its_response(path: str, status: int, kind: str) -> None:
    async def main() -> None:
        async with house() as one:
            run_id = await one.ended(path)
            told = is_problem(await one.get(run_id, "response"), status, kind)
            stream = await one.get(run_id, "stream")
            assert is_problem(stream, status, kind) == told
            assert "retry-after" not in stream.headers
            again = await one.http.post(path, headers={"idempotency-key": "k"})
            is_problem(again, status, kind)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/fails", "/waits", "/says_nothing"])
def test_an_event_stream_that_has_nothing_to_show_stops(path: str) -> None:
    async def main() -> None:
        async with house() as one:
            run_id = await one.ended(path)
            answer = await one.get(run_id, "stream", **SSE)
            assert (answer.status_code, answer.content) == (204, b"")
            told = await one.get(run_id, "stream", **SSE, **{"durable-events": "1"})
            names = [event.event for event in events_of(told.text)]
            assert names == ["durable.run", "durable.done"]

    asyncio.run(main())


def test_who_waits_for_the_head_is_told_when_none_will_come() -> None:
    async def main() -> None:
        async with house() as one:
            run_id = await one.begin("/waits")
            run = await one.engine.observe(run_id)
            reading = asyncio.create_task(one.get(run_id, "stream"))
            while run.readers == 0:
                await asyncio.sleep(0)
            await one.cancel(run_id)
            is_problem(await reading, 409, "run-cancelled")

    asyncio.run(main())


@pytest.mark.parametrize("what", ["response", "stream"])
def test_a_call_has_a_result_and_no_response(what: str) -> None:
    async def main() -> None:
        async with house() as one:
            await one.http.post("/says_nothing")  # the first request opens the engine
            run = await start(one.engine, adds, 1, 2)
            assert await run.result() == 3
            is_problem(await one.get(run.id, what), 409, "run-completed")

    asyncio.run(main())
