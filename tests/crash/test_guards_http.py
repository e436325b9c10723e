"""Promises to HTTP clients that a fast test in one process can hold on to, each with a mutant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, Engine, MemoryStore, durable, emit
from durable_endpoints.errors import StreamAborted
from durable_endpoints.stores.protocol import Query
from durable_endpoints.testing import Decoder
from tests.crash.held import HeldStore, one, run

ODD_TEXTS = ("a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc", "a\x1cb\x1db\x1ec", "end\n", "")


@durable
async def answer(request: Request) -> JSONResponse:
    return JSONResponse({"made": [await one(n) for n in range(3)]})


@durable
async def broken(request: Request) -> JSONResponse:
    raise ValueError(str(await one(1)))


@durable
async def stream(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {await one(number)}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@durable
async def short(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        yield f"data: {await one(1)}\n\n"
        raise ValueError("it was to fail")

    return StreamingResponse(body(), media_type="text/event-stream")


GOING: list[asyncio.Event] = []


@durable
async def late(request: Request) -> JSONResponse:
    await one(1)
    GOING.append(asyncio.Event())
    await GOING[-1].wait()
    return JSONResponse({})


@durable
async def odd(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        yield "data: first\n\n"
        for text in ODD_TEXTS:
            emit(text, event="odd")

    return StreamingResponse(body(), media_type="text/event-stream")


@durable
async def text(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for piece in ODD_TEXTS:
            yield piece

    return StreamingResponse(body(), media_type="text/plain")


def app_on(engine: Engine) -> Starlette:
    endpoints = (answer, broken, stream, short, late, odd, text)
    routes = [Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints]
    return Starlette(routes=routes, middleware=[Middleware(DurableMiddleware, engine=engine)])


def client(app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize(
    ("path", "prefer", "status"),
    [("/answer", "", 200), ("/stream", "", 200), ("/broken", "", 500),
     ("/answer", "respond-async", 202)],
)  # fmt: skip
def test_i1_nothing_leaves_before_it_is_durable(path: str, prefer: str, status: int) -> None:
    async def work() -> None:
        store = HeldStore()
        engine = Engine(store)
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "headers": [(b"prefer", prefer.encode())],
            "http_version": "1.1", "scheme": "http",
            "client": ("127.0.0.1", 1), "server": ("test", 80), "root_path": "",
            "asgi": {"version": "3.0"},
        }  # fmt: skip
        asking = asyncio.create_task(app_on(engine)(scope, receive, send))
        await store.waiting.wait()
        for _ in range(50):  # as far as it gets without the commit
            await asyncio.sleep(0)
        early, done = list(sent), asking.done()
        store.open_gate.set()
        assert not early
        assert not done
        await asyncio.gather(asking, return_exceptions=True)  # a broken one raises what it raised
        assert sent[0]["status"] == status
        await engine.close()

    run(work)


def test_i1_a_cancel_tells_of_no_end_that_is_not_durable() -> None:
    async def work() -> None:
        store = HeldStore()
        store.open_gate.set()
        engine = Engine(store)
        async with client(app_on(engine)) as http:
            asking = asyncio.create_task(http.get("/late"))
            while not GOING:
                await asyncio.sleep(0.001)
            store.open_gate.clear()
            [live] = engine.runs.values()
            GOING.pop().set()
            while not live.over:
                await asyncio.sleep(0.001)
            cancelling = asyncio.create_task(http.post(f"/_durable/runs/{live.id}/cancel"))
            await asyncio.wait([cancelling], timeout=0.1)
            early = cancelling.done()
            store.open_gate.set()
            answer = await cancelling
            assert not early
            assert (answer.status_code, answer.json()["detail"]) == (
                409, "the run has ended: completed"
            )  # fmt: skip
            assert (await asking).status_code == 200
        await engine.close()

    run(work)


def test_i5_a_stream_that_is_cut_short_does_not_end_cleanly() -> None:
    """Several clients take a clean end for the whole of it."""

    async def work() -> None:
        engine = Engine(MemoryStore())
        async with client(app_on(engine)) as http:
            with pytest.raises(ValueError, match="it was to fail"):
                await http.get("/short")
            [record] = await engine.store.list(Query())
            assert (record.status, record.events) == ("failed", 2)
            with pytest.raises(StreamAborted, match="before its response was complete"):
                await http.get(f"/_durable/runs/{record.run_id}/stream")
        await engine.close()

    run(work)


def test_i4_every_reader_gets_the_same_ids() -> None:
    async def work() -> None:
        engine = Engine(MemoryStore())
        async with client(app_on(engine)) as http:
            first = await http.get("/stream")
            await asyncio.sleep(0.01)
            path = f"/_durable/runs/{first.headers['durable-run-id']}/stream"
            again = await http.get(path, headers={"accept": "text/event-stream"})
        assert first.text.count("id: ") == 3
        assert again.text == first.text
        await engine.close()

    run(work)


@pytest.mark.parametrize(("path", "event"), [("/odd", "odd"), ("/text", "message")])
def test_only_line_ends_end_lines(path: str, event: str) -> None:
    """U+2028, NEL, VT and FF are text, whatever `str.splitlines` takes them for."""

    async def work() -> None:
        engine = Engine(MemoryStore())
        async with client(app_on(engine)) as http:
            run_id = (await http.get(path)).headers["durable-run-id"]
            stored = await http.get(
                f"/_durable/runs/{run_id}/stream", headers={"accept": "text/event-stream"}
            )
        blocks = [block for block in Decoder().feed(stored.content) if block.event == event]
        # An empty piece of a body is no event; an empty emitted one is.
        wanted = ODD_TEXTS if event == "odd" else tuple(filter(None, ODD_TEXTS))
        assert tuple(block.data for block in blocks) == wanted
        await engine.close()

    run(work)
