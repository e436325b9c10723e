"""Promises that a fast test in one process can hold on to, each the catcher of a mutant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from durable_endpoints import (
    DurableMiddleware,
    Engine,
    MemoryStore,
    SQLiteStore,
    StoreError,
    durable,
    emit,
    random,
    step,
)
from durable_endpoints.errors import StoreFailed
from durable_endpoints.records import Frame
from durable_endpoints.testing import Decoder
from tests.crash.process import CrashServer
from tests.engine.worlds import World, play

ODD_TEXTS = ("a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc", "a\x1cb\x1db\x1ec", "end\n", "")


class HeldStore(MemoryStore):
    """A store whose commits wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.open_gate = asyncio.Event()
        self.waiting = asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        self.waiting.set()
        await self.open_gate.wait()
        return await super().append(batch)


@step
async def one(number: int) -> int:
    return number


@durable
async def answer(request: Request) -> JSONResponse:
    return JSONResponse({"made": [await one(n) for n in range(3)]})


@durable
async def stream(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {await one(number)}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


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


@durable
async def racing(names: list[str]) -> list[str]:
    """Another scheduling at every attempt, made by waits that are no steps."""

    async def one_of(name: str) -> str:
        is_late = (name == names[-1]) != bool(reached)  # late at first, early at the replay
        for _ in range(20 * is_late):
            await asyncio.sleep(0)
        return await named(name)

    made = list(await asyncio.gather(*(one_of(name) for name in names)))
    await stop_once("racing")
    return made


@durable
async def drawing() -> float:
    first = random().random()
    emit(str(first))
    await stop_once("drawing")
    return first


@step
async def named(name: str) -> str:
    return name


reached: dict[str, asyncio.Event] = {}


async def stop_once(name: str) -> None:
    """Stay here in the first process; the next one goes on."""
    if name not in reached:
        reached[name] = asyncio.Event()
        await asyncio.Event().wait()


def replayed(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in one process up to its stop and to its end in the next; its result."""
    found: list[Any] = []
    reached.clear()

    async def scenario(world: World) -> None:
        begun = await world.start(function, *args)
        async with asyncio.timeout(10):
            while function.__name__ not in reached:
                await asyncio.sleep(0.001)
        await world.engine.log.flush()
        await world.crash()
        await world.boot()
        ended = await world.ended(begun.id)
        assert ended.status == "completed"
        found.append(await ended.result())

    play(scenario)
    return found[0]


def test_i12_identity_does_not_depend_on_scheduling() -> None:
    names = [f"n{number}" for number in range(4)]
    assert replayed(racing, names) == names


def test_i11_chance_is_the_same_at_every_attempt() -> None:
    assert 0 <= replayed(drawing) < 1


def app_on(engine: Engine) -> Starlette:
    endpoints = (answer, stream, odd, text)
    routes = [Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints]
    return Starlette(routes=routes, middleware=[Middleware(DurableMiddleware, engine=engine)])


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


def client(app: Starlette) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize("path", ["/answer", "/stream"])
def test_i1_nothing_leaves_before_it_is_durable(path: str) -> None:
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
            "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http",
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
        await asking
        assert sent[0]["status"] == 200
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


@pytest.mark.crash
def test_one_bad_payload_does_not_poison_the_batch(tmp_path: Path) -> None:
    """What cannot be written fails its own run: neighbours in the same batch go on (I20)."""

    async def work(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            for how in ("raise", "step", "result", "name", "emit"):
                neighbours = (http.post("/json?n=3&ms=1") for _ in range(4))
                asked = (http.post(f"/bad?how={how}"), *neighbours)
                failed, *others = await asyncio.gather(*asked)
                assert failed.status_code == 500, how
                assert [other.status_code for other in others] == [200] * 4, how
            runs = (await http.get("/_durable/runs")).json()["runs"]
        assert sorted(run["status"] for run in runs) == ["completed"] * 20 + ["failed"] * 5

    with CrashServer(tmp_path) as server:
        asyncio.run(work(server.url))


def test_only_one_connection_can_write(tmp_path: Path) -> None:
    """SQLite before 3.51.3 can corrupt a database under two connections that write."""

    async def work() -> None:
        store = SQLiteStore(tmp_path / "durable.db")
        await store.open()
        try:
            with pytest.raises(StoreError, match="readonly"):
                await store._read(lambda db: db.execute("delete from runs"))
        finally:
            await store.close()

    run(work)


def test_a_failed_write_is_never_followed_by_another(tmp_path: Path) -> None:
    """I9: after one failure the store refuses, whatever the next write is."""

    async def work() -> None:
        store = SQLiteStore(tmp_path / "durable.db")
        await store.open()
        try:
            with pytest.raises(StoreFailed):
                await store._write(lambda db: db.execute("insert into nothing values (1)"))
            assert store.failed is not None
            with pytest.raises(StoreFailed):
                await store.claim(["any"], 0)
            with pytest.raises(StoreFailed):
                await store.append([])
        finally:
            await store.close()

    run(work)
