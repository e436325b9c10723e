"""httpx-sse, a stock decoder without reconnects: the caller comes back with `Last-Event-ID`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from tests.apps.streams import text_of
from tests.support.server import Server

TIMEOUT = httpx.Timeout(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server("tests.apps.streams:app", tmp_path) as server:
        yield server


def check(events: list[ServerSentEvent], count: int) -> None:
    assert [event.data for event in events] == [text_of(number) for number in range(count)]
    offsets = [int(event.id.rpartition(":")[2].partition("-")[0]) for event in events]
    assert offsets == list(range(1, count + 1))


@pytest.mark.crash
@pytest.mark.parametrize("way", ["the run's address", "the same POST", "the same GET"])
def test_coming_back_after_a_kill(server: Server, way: str) -> None:
    asked = {"n": 30, "hold": 20}
    method = "GET" if way == "the same GET" else "POST"
    request = {"params": asked} if method == "GET" else {"json": asked}

    async def main() -> None:
        events: list[ServerSentEvent] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as http:
            async with aconnect_sse(http, method, "/chat", **request) as source:
                run_id = source.response.headers["durable-run-id"]
                async for event in source.aiter_sse():
                    events.append(event)
                    if len(events) == 20:
                        break
            await asyncio.to_thread(server.restart)
            (server.directory / "release").touch()
            headers = {"Last-Event-ID": events[-1].id}
            if way == "the run's address":
                method_, path, more = "GET", f"/_durable/runs/{run_id}/stream", {}
            else:
                method_, path, more = method, "/chat", request
            async with aconnect_sse(http, method_, path, headers=headers, **more) as source:
                events += [event async for event in source.aiter_sse()]
            check(events, 30)
            over = await http.request(
                method_, path, headers={"Last-Event-ID": events[-1].id}, **more
            )
            assert over.status_code == 204
            assert len((await http.get("/_durable/runs")).json()["runs"]) == 1

    asyncio.run(main())


def test_heartbeats_are_no_events(server: Server) -> None:
    """Two readers: one sees a heartbeat on the wire, the other must not see an event for it."""

    async def main() -> None:
        events: list[ServerSentEvent] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as http:

            async def read() -> None:
                async with aconnect_sse(http, "POST", "/chat", json={"n": 6, "hold": 3}) as source:
                    events.extend([event async for event in source.aiter_sse()])

            reading = asyncio.create_task(read())
            while not (found := (await http.get("/_durable/runs")).json()["runs"]):
                await asyncio.sleep(0.01)
            path = f"/_durable/runs/{found[0]['id']}/stream"
            async with http.stream("GET", path) as raw:
                seen = b""
                async for chunk in raw.aiter_bytes():
                    seen += chunk
                    if b": hb" in seen:
                        break
            assert seen.endswith(b"\n: hb\n")
            (server.directory / "release").touch()
            await reading
        check(events, 6)

    asyncio.run(main())
