"""`DurableClient` against real servers: cut connections, killed processes, lost answers.

Whatever happens on the way, the transcript equals the run's final log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints.client import (
    ConnectionLost,
    DurableClient,
    Event,
    HistoryDiverged,
    ResponseError,
    Rewind,
    RunStream,
)
from durable_endpoints.clock import SystemClock
from durable_endpoints.errors import RunCancelled, RunFailed, RunNotFound
from tests.apps.streams import text_of
from tests.support.log import final_log, runs
from tests.support.server import Server, TCPProxy

Scenario = Callable[[Server, TCPProxy, DurableClient], Awaitable[None]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server("tests.apps.streams:app", tmp_path) as server:
        yield server


def play(server: Server, scenario: Scenario, **options: Any) -> None:
    """Run a scenario; its client speaks to the server through the proxy."""

    async def main() -> None:
        async with TCPProxy(server.port) as proxy, DurableClient(proxy.url, **options) as client:
            await asyncio.wait_for(scenario(server, proxy, client), 60)

    asyncio.run(main())


def as_log(items: list[Event | Rewind]) -> list[tuple[str, str, str]]:
    return [
        (item.event, item.data, item.id) if isinstance(item, Event)
        else ("durable.rewind", f'{{"to":{item.to}}}', item.id)
        for item in items
    ]  # fmt: skip


def check(server: Server, run: RunStream, items: list[Event | Rewind]) -> None:
    """The transcript is the final log, each event once and in order."""
    assert as_log(items) == final_log(server, str(run.run_id))
    assert [item.offset for item in items] == list(range(1, len(items) + 1))
    assert len(runs(server)) == 1


async def take(run: RunStream, count: int) -> list[Event | Rewind]:
    return [await anext(run) for _ in range(count)]


async def status_at_the_end(client: DurableClient, run_id: str) -> str:
    """The response may be whole a moment before the run has ended."""
    while (status := str((await client.info(run_id))["status"])) == "running":
        await asyncio.sleep(0.01)
    return status


def texts(count: int) -> list[str]:
    return [text_of(number) for number in range(count)]


def test_a_whole_stream(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        async with client.stream("POST", "/chat", json={"n": 24}) as run:
            assert run.run_id
            items = [item async for item in run]
        assert run.text == "".join(texts(24))
        assert [event.data for event in run.events] == texts(24)
        assert run.status in {"completed", "running"}  # the response can be whole a moment earlier
        assert proxy.connections == 1
        check(server, run, items)

    play(server, scenario)


def test_cut_connections(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        sizes = (700, 500, 431, 650, 900, 444, 1200, 1000, 800)
        proxy.cut_after(*sizes)
        run = client.stream("POST", "/chat", json={"n": 60, "pause_ms": 5})
        items = [item async for item in run]
        assert proxy.connections > len(sizes)
        assert run.text == "".join(texts(60))
        check(server, run, items)

    play(server, scenario)


def test_a_lost_answer_leads_to_the_same_run(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        proxy.cut_after(0, 0)
        async with client.stream("POST", "/chat", json={"n": 8}) as run:
            items = [item async for item in run]
        assert proxy.connections >= 3
        check(server, run, items)

    play(server, scenario)


@pytest.mark.crash
def test_a_killed_server(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 90, "pause_ms": 10, "hold": 80})
        items: list[Event | Rewind] = []
        for _ in range(3):
            items += await take(run, 20)
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            items += await take(run, 1)
            await starting
        (server.directory / "release").touch()
        items += [item async for item in run]
        assert run.text == "".join(texts(90))
        check(server, run, items)

    play(server, scenario)


@pytest.mark.crash
def test_a_rewind(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/again", json={"n": 6, "hold": 4})
        items = await take(run, 5)
        await asyncio.to_thread(server.restart)
        rewind = await anext(run)
        assert isinstance(rewind, Rewind)
        assert run.text == "before "
        (server.directory / "release").touch()
        items += [rewind, *[item async for item in run]]
        assert run.text == "before " + "".join(f"[2.{n}]" for n in range(6)) + " after"
        check(server, run, items)

        anew = client.resume(str(run.run_id))  # who comes later reads the same log
        assert [item async for item in anew] == items
        assert anew.text == run.text

    play(server, scenario)


@pytest.mark.crash
def test_a_drained_server(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 30, "hold": 20})
        items = await take(run, 20)
        await asyncio.to_thread(server.terminate)
        (server.directory / "release").touch()
        await asyncio.to_thread(server.start)
        items += [item async for item in run]
        check(server, run, items)

    play(server, scenario)


def test_a_connection_that_is_dead_but_open(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 40, "hold": 20})
        items = await take(run, 20)
        proxy.stall()
        (server.directory / "release").touch()
        items += [item async for item in run]
        check(server, run, items)

    play(server, scenario, heartbeat_s=0.2)


def test_a_server_that_refuses_for_a_while(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        proxy.refusing = True
        opening = asyncio.create_task(client.stream("POST", "/chat", json={"n": 4}).__aenter__())
        while proxy.connections < 3:
            await asyncio.sleep(0.01)
        proxy.refusing = False
        run = await opening
        check(server, run, [item async for item in run])

    play(server, scenario)


def test_patience_ends(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 4, "hold": 2})
        await take(run, 2)
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(ConnectionLost, match=r"patience_s=0\.5"):
            await anext(run)

    play(server, scenario, patience_s=0.5)


class StoppedClock(SystemClock):
    """The client's patience passes when the test says so, and not while the machine is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0
        self.monotonic_s = lambda: self.passed_s  # type: ignore[method-assign, misc]


def test_silence_before_the_response_is_no_lost_connection(server: Server) -> None:
    clock = StoppedClock()

    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/answer", json={"hold": 0})
        opening = asyncio.create_task(anext(run))
        for _ in range(3):  # the server answers, if not this request
            given_up = proxy.connections + 2
            while proxy.connections < given_up and not opening.done():
                await asyncio.sleep(0.01)
            assert not opening.done()
            clock.passed_s += 2  # twice the patience
        (server.directory / "release").touch()
        assert await opening
        assert run.text == '{"value":"kept"}'
        assert len(runs(server)) == 1

    play(server, scenario, heartbeat_s=0.1, patience_s=1.0, clock=clock)


def test_ids_and_types_of_the_apps_own(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        proxy.cut_after(900, 700, 800)
        run = client.stream("POST", "/named", json={"n": 40, "pause_ms": 5})
        items = [item async for item in run]
        assert proxy.connections > 3
        assert [event.data for event in run.events] == texts(40)
        assert [event.id for event in run.events] == [f"own-{n}" for n in range(40)]
        assert [event.event for event in run.events] == [f"kind{n % 3}" for n in range(40)]
        assert run.text == ""
        check(server, run, items)

    play(server, scenario)


def test_a_body_that_is_no_event_stream(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/plain", json={"n": 24, "pause_ms": 5})
        items = [item async for item in run]
        assert run.text == "".join(texts(24))
        check(server, run, items)

        torn = client.stream("POST", "/torn")  # chunks that are half a letter
        chunks = [item.chunk() async for item in torn if isinstance(item, Event)]
        assert b"".join(chunks).decode() == torn.text == "é\r漢😀"

    play(server, scenario)


def test_resuming_from_anywhere(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 10})
        items = [item async for item in run]
        run_id, last = str(run.run_id), items[-1]
        assert await status_at_the_end(client, run_id) == "completed"
        for after in (3, items[2].id):
            assert [item async for item in client.resume(run_id, after)] == items[3:]
        for after in (last.offset, last.id):
            over = client.resume(run_id, after)
            assert [item async for item in over] == []
            assert over.status == "completed"
        with pytest.raises(ValueError, match="no id of a run's event"):
            client.resume(run_id, "own-3")

    play(server, scenario)


def test_what_is_refused_is_told_at_once(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        async def refused(run: RunStream) -> ResponseError:
            before = proxy.connections
            with pytest.raises(ResponseError) as caught:
                await anext(run)
            assert proxy.connections - before <= 1
            return caught.value

        assert (await refused(client.stream("POST", "/undurable"))).status == 200
        assert (
            await refused(client.stream("POST", "/undurable", json={"status": 500}))
        ).status == 500
        assert (await refused(client.stream("POST", "/nowhere"))).status == 404
        assert (await refused(client.stream("POST", "/answer", json={"status": 409}))).status == 409
        assert "kept" in str(await refused(client.stream("POST", "/answer", json={"status": 503})))
        assert (server.directory / "attempts").read_text() == "xxxx"

        key = {"idempotency_key": "one"}
        await anext(client.stream("POST", "/chat", json={"n": 1}, **key))
        assert (await refused(client.stream("POST", "/chat", json={"n": 2}, **key))).status == 422

    play(server, scenario)


def test_a_log_that_is_another(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 4})
        items = [item async for item in run]
        run_id, offset, hashed = str(run.run_id), items[-1].offset, items[-1].id[-8:]
        for cursor in (f"{offset}-{int(hashed, 16) ^ 1:08x}", f"{offset + 5}-{hashed}"):
            with pytest.raises(HistoryDiverged) as caught:
                await anext(client.resume(run_id, f"{run_id}:{cursor}"))
            assert caught.value.status == 409
        unknown = run_id[:-4] + ("0000" if run_id[-4:] != "0000" else "1111")
        with pytest.raises(RunNotFound):
            await anext(client.resume(unknown))
        with pytest.raises(RunNotFound):
            await client.cancel(unknown)

    play(server, scenario)


@pytest.mark.parametrize("shown", ["5-", "2-"], ids=["a hole", "a duplicate, then a hole"])
def test_a_wire_that_loses_an_event(server: Server, shown: str) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        proxy.edit = lambda data: data.replace(b":4-", b":" + shown.encode())
        run = client.stream("POST", "/chat", json={"n": 10, "pause_ms": 10})
        with pytest.raises(HistoryDiverged, match="where 4 was due") as caught:
            async for _ in run:
                pass
        assert caught.value.status == 0
        assert [event.offset for event in run.events] == [1, 2, 3]

    play(server, scenario)


def test_a_run_that_fails(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/fails", json={"n": 5})
        with pytest.raises(RunFailed, match="RuntimeError"):
            async for _ in run:
                pass
        assert (run.status, [event.data for event in run.events]) == ("failed", texts(5))
        with pytest.raises(RunFailed):  # to who comes later, and has seen it all, too
            await anext(client.resume(str(run.run_id), run.events[-1].offset))

    play(server, scenario)


def test_cancelling(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        run = client.stream("POST", "/chat", json={"n": 5, "hold": 2})
        await take(run, 2)
        assert await run.cancel() in {"running", "cancelled"}
        with pytest.raises(RunCancelled):
            await anext(run)
        assert await client.cancel(str(run.run_id)) == "cancelled"

        ended = client.stream("POST", "/chat", json={"n": 1})
        assert len([item async for item in ended]) == 1
        await status_at_the_end(client, str(ended.run_id))
        assert await ended.cancel() == "completed"

    play(server, scenario)


def test_letting_go_cancels_nothing(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        async with client.stream("POST", "/chat", json={"n": 6, "hold": 3}) as run:
            items = await take(run, 3)
        (server.directory / "release").touch()
        items += [item async for item in client.resume(str(run.run_id), items[-1].id)]
        check(server, run, items)

    play(server, scenario)


@pytest.mark.crash
def test_a_json_answer_over_a_killed_server(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        asked = {"hold": 0, "status": 202}  # a 202 of the handler's own is no "not yet"
        answering = asyncio.create_task(client.request("POST", "/answer", json=asked))
        while not (server.directory / "attempts").exists():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.restart)
        (server.directory / "release").touch()
        answer = await answering
        assert (answer.status_code, answer.json()) == (202, {"value": "kept"})
        assert len(runs(server)) == 1

    play(server, scenario)


def test_json_answers(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        for status in (200, 202, 404, 422, 500, 503):
            answer = await client.request("POST", "/answer", json={"status": status})
            assert (answer.status_code, answer.json()) == (status, {"value": "kept"})
        assert len(runs(server)) == 6
        proxy.cut()
        proxy.cut_after(0, 60, 250)
        answer = await client.request("GET", "/answer", params={"status": "404"})
        assert (answer.status_code, answer.json()) == (404, {"value": "kept"})
        assert len(runs(server)) == 7
        answer = await client.request("POST", "/undurable", json={"status": 418})
        assert (answer.status_code, answer.json()) == (418, {"plain": True})

    play(server, scenario)
