"""Servers that stop, are killed and come back; runs that are cancelled."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.support.server import Server
from tests.surface.wire import (
    Asked,
    events_of,
    is_problem,
    noted,
    run_of,
    until,
    until_noted,
    until_status,
)

SSE = {"accept": "text/event-stream"}


def accepted(client: httpx.Client, method: str, path: str, **more: Any) -> str:
    """Make a run whose answer nobody waits for; return its id."""
    answer = client.request(method, path, headers={"prefer": "respond-async"}, **more)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["durable-run-id"])


RECOVERED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "lifespan state": ("GET", "/greeting", {}, "greeting"),
    "an upload": (
        "POST", "/upload",
        {"data": {"title": "t"}, "files": {"file": ("f", b"0123456789" * 9000)}}, "upload",
    ),
    "a mounted app": ("GET", "/sub/inside", {}, "inside"),
    "an unchanged handler": ("GET", "/unchanged", {}, "class"),
    "a class-based endpoint": ("GET", "/class", {}, "class"),
    "a JSON body": ("POST", "/json", {"json": {"text": "body"}}, "body"),
    "background work": ("POST", "/background", {}, "background"),
}  # fmt: skip


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_a_killed_run_goes_on_with_all_it_had(serve: Callable[..., Server], root_path: str) -> None:
    options = ("--root-path", root_path) if root_path else ()
    server = serve(options=options)
    runs = {}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for what, (method, path, more, shouted) in RECOVERED.items():
            runs[what] = accepted(client, method, path, params={"hold": "go"}, **more)
            until_noted(server.directory, f"shout {shouted}")
        whole = client.get("/sub/inside", params={"hold": ""}).json()
    server.kill()
    (server.directory / "go").touch()
    server.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for what, run_id in runs.items():
            run = until_status(client, run_id, "completed", "failed", "dead", "diverged")
            assert (what, run["status"], run["error"]) == (what, "completed", None)
        got = {
            what: client.get(f"/_durable/runs/{run_id}/response") for what, run_id in runs.items()
        }
        assert {answer.status_code for answer in got.values()} == {200}
        assert got["lifespan state"].json()["greeting"] == "hello from the lifespan"
        assert got["an upload"].json()["size"] == 90_000
        inside = got["a mounted app"].json()
        assert inside["root_path"] == whole["root_path"]
        assert inside["link"] == whole["link"]
        assert got["a JSON body"].json() == {"answer": "BODY", "run": runs["a JSON body"]}
    assert noted(server.directory, "background done") == 1


def test_a_stream_cut_by_a_kill_keeps_what_was_shown(serve: Callable[..., Server]) -> None:
    """Its reader did not speak of rewinds: the handler is told, what was shown stands."""
    server = serve()
    shown = ""
    asked: Asked = {"n": 6, "hold": "cut", "at": 3}
    with (
        httpx.Client(base_url=server.url, timeout=30) as client,
        client.stream("GET", "/sub/events", params=asked) as stream,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        run_id = run_of(stream)
        for chunk in stream.iter_text():
            shown += chunk
            if len(events_of(shown)) == 3:
                server.kill()
    server.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        told = client.get(
            f"/_durable/runs/{run_id}/stream", headers={**SSE, "durable-events": "1"}
        )  # fmt: skip
        begun, *events, done = events_of(told.text)
        assert begun.event == "durable.run"
        assert events == events_of(shown)
        assert done.data == '{"status":"failed","error":"StreamInterrupted"}'


def test_sigterm_lets_a_run_finish_that_can(serve: Callable[..., Server]) -> None:
    server = serve()
    asked: Asked = {"n": 6, "hold": "drain", "at": 3}
    with (
        httpx.Client(base_url=server.url, timeout=30) as client,
        client.stream("GET", "/events/hand", params=asked) as stream,
    ):
        run_of(stream)
        chunks = stream.iter_text()
        shown = next(chunks)
        server.signal(signal.SIGTERM)
        until("no new connections", lambda: refuses(server))
        (server.directory / "drain").touch()
        shown += "".join(chunks)
    assert len(events_of(shown)) == 6
    assert server.wait() in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()


def refuses(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/plain", timeout=5)
    except httpx.TransportError:
        return True
    return False


def test_sigterm_leaves_a_long_run_to_the_next_process(serve: Callable[..., Server]) -> None:
    server = serve()
    shown = ""
    asked: Asked = {"n": 6, "hold": "leave", "at": 3}
    headers = {"durable-events": "1"}
    with (
        httpx.Client(base_url=server.url, timeout=30, headers=headers) as client,
        client.stream("GET", "/events/own", params=asked) as stream,
    ):
        run_id = run_of(stream)
        chunks = stream.iter_text()
        while "own-2" not in shown:
            shown += next(chunks)
        server.signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):  # cut, so that the reader comes back
            shown += "".join(chunks)
    assert server.wait() in (0, -signal.SIGTERM)
    (server.directory / "leave").touch()
    server.start()
    with httpx.Client(base_url=server.url, timeout=30, headers=headers) as client:
        until_status(client, run_id, "completed")
        whole = events_of(client.get(f"/_durable/runs/{run_id}/stream", headers=SSE).text)
        assert [event.data for event in whole if not event.event][-6:] == [
            f"word {number}" for number in range(6)
        ]
        assert whole[-1].event == "durable.done"


def test_while_it_drains_nothing_begins_and_readers_are_told_to_come_back() -> None:
    """What a server answers on the connections that it still has."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    from durable_endpoints import DurableMiddleware, durable

    @durable
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def main() -> None:
        app = Starlette(routes=[Route("/", hello, methods=["GET", "POST"])])
        middleware = DurableMiddleware(app, store="memory:")
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            run_id = run_of(await client.post("/"))
            await middleware.engine.drain(0)
            for method in ("GET", "POST"):
                refused = await client.request(method, "/")
                is_problem(refused, 503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/_durable/health")).status_code == 503
            back = await client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
            assert back.status_code == 200
            assert back.headers["content-type"].startswith("text/event-stream")
            assert back.text.startswith("retry: ")
            assert events_of(back.text) == []
            await middleware.engine.close()

    asyncio.run(main())


def test_too_many_runs_at_work_are_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.responses import PlainTextResponse
    from starlette.types import Receive, Scope, Send

    from durable_endpoints import DurableMiddleware

    monkeypatch.setattr("durable_endpoints.engine.engine.RUNS_LIVE_MAX", 2)

    async def main() -> None:
        release = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await PlainTextResponse("done")(scope, receive, send)

        middleware = DurableMiddleware(app, store="memory:", routes=["/run"])
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            working = [asyncio.ensure_future(client.post("/run")) for _ in range(2)]
            while len(middleware.engine.runs) < 2:
                await asyncio.sleep(0)
            refused = await client.post("/run", headers={"idempotency-key": "free again"})
            is_problem(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            release.set()
            assert {answer.text for answer in await asyncio.gather(*working)} == {"done"}
            again = await client.post("/run", headers={"idempotency-key": "free again"})
            assert again.text == "done"
        await middleware.engine.close()

    asyncio.run(main())


@contextmanager
def endless_upstream() -> Iterator[tuple[str, threading.Event]]:
    """A server that streams lines until its client leaves; the event is set when it has left."""
    left = threading.Event()
    ready: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []
    begun = threading.Event()

    async def answer(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        try:
            await incoming.readuntil(b"\r\n\r\n")
            outgoing.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
            number = 0
            while not incoming.at_eof():
                outgoing.write(f"line {number}\n".encode())
                await outgoing.drain()
                number += 1
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass  # it left, by a reset
        finally:
            left.set()
            outgoing.close()
            with suppress(OSError):  # before the loop is gone
                await outgoing.wait_closed()

    async def main() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        begun.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert begun.wait(10)
    loop, stop, port = ready[0]
    try:
        yield f"http://127.0.0.1:{port}/", left
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_cancel_closes_the_upstream_call(serve: Callable[..., Server]) -> None:
    server = serve()
    with (
        endless_upstream() as (url, left),
        httpx.Client(base_url=server.url, timeout=30) as client,
        client.stream("GET", "/upstream", params={"url": url}) as stream,
    ):
        run_id = run_of(stream)
        shown = ""
        chunks = stream.iter_text()
        while len(events_of(shown)) < 3:
            shown += next(chunks)
        assert not left.is_set()
        answer = client.post(f"/_durable/runs/{run_id}/cancel")
        assert answer.status_code == 202
        assert left.wait(10)
        shown += "".join(chunks)
        until_noted(server.directory, "upstream call closed")
        until_status(client, run_id, "cancelled")
        kept = client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
        assert kept.text == shown


def test_a_reader_that_leaves_does_not_cancel(serve: Callable[..., Server]) -> None:
    server = serve()
    with (
        endless_upstream() as (url, left),
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        with client.stream("GET", "/upstream", params={"url": url}) as stream:
            run_id = run_of(stream)
            next(stream.iter_text())
        events = client.get(f"/_durable/runs/{run_id}").json()["events"]
        until(
            "it goes on without a reader",
            lambda: client.get(f"/_durable/runs/{run_id}").json()["events"] > events + 20,
        )
        assert not left.is_set()
        assert client.post(f"/_durable/runs/{run_id}/cancel").status_code == 202
        assert left.wait(10)


def test_a_second_server_on_the_same_store_is_refused(serve: Callable[..., Server]) -> None:
    server = serve()
    second = Server("tests.apps.surface:app", server.directory)
    with pytest.raises(AssertionError, match="the server ended"):
        second.start()
    assert second.wait() != 0
    assert "in use" in server.log.read_text() or "another process" in server.log.read_text()
    assert httpx.get(f"{server.url}/json").json() == {"answer": "HI"}
