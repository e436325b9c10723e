"""`DurableClient` and runs that wait: signals over lost answers, retries, suspended streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest

from durable_endpoints.client import DurableClient, Event, ResponseError
from durable_endpoints.errors import RunFailed, RunNotFound
from tests.support.server import Server, TCPProxy
from tests.surface.waiters import NOBODY

Scenario = Callable[[Server, TCPProxy, DurableClient], Awaitable[None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("client")) as server:
        yield server


def play(server: Server, scenario: Scenario) -> None:
    async def main() -> None:
        async with TCPProxy(server.port) as proxy, DurableClient(proxy.url) as client:
            await asyncio.wait_for(scenario(server, proxy, client), 60)

    asyncio.run(main())


async def until_status(client: DurableClient, run_id: str, status: str) -> None:
    while (await client.info(run_id))["status"] != status:
        await asyncio.sleep(0.01)


def test_a_stream_says_what_its_run_waits_for(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durable_endpoints.client")

    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        async with client.stream("POST", "/stream", params={"waits": "2"}) as run:
            assert run.waiting is None
            got: list[str] = []

            async def read() -> None:
                async for item in run:
                    assert isinstance(item, Event)
                    got.append(item.data)

            async def until_told(times: int) -> None:
                while caplog.text.count("waits for: signal go") < times:
                    await asyncio.sleep(0.01)
                assert run.waiting == [{"kind": "signal", "name": "go", "until": None}]

            reading = asyncio.create_task(read())
            await until_told(1)
            assert await run.signal("go", 0) == "taken"
            await until_told(2)
            proxy.cut()
            await until_told(3)  # a new connection is told again
            assert await run.signal("go", 1) == "taken"
            await reading
            assert got == ["asked", "0", "1", "end"]
            assert run.waiting is None
            assert run.status == "completed"

    play(server, scenario)


def test_a_signal_whose_answer_is_lost_is_one_signal(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        accepted = await client._http.post(
            f"{server.url}/busy", params={"hold": ""}, headers={"prefer": "respond-async"}
        )
        run_id = accepted.headers["durable-run-id"]
        await until_status(client, run_id, "suspended")
        await client._http.aclose()
        async with DurableClient(proxy.url) as other:
            proxy.cut_after(1)  # the server has taken it, its answer never arrives
            assert await other.signal(run_id, "go", 1) == "known"
            await until_status(other, run_id, "suspended")  # it durably waits for the second
            server.restart()
            assert await other.signal(run_id, "go", 1, idempotency_key="mine") == "taken"
            assert await other.signal(run_id, "go", 1, idempotency_key="mine") == "known"
            await until_status(other, run_id, "completed")
            response = await other._http.get(f"{proxy.url}/_durable/runs/{run_id}/response")
            assert response.json() == {"got": [1, 1]}

    play(server, scenario)


def test_what_a_run_does_not_take_is_told(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        accepted = await client._http.post(
            f"{server.url}/json", params={"once": True}, headers={"prefer": "respond-async"}
        )
        run_id = accepted.headers["durable-run-id"]
        await until_status(client, run_id, "suspended")
        assert await client.signal(run_id, "go", {"n": 1}) == "taken"
        await until_status(client, run_id, "completed")
        for name, problem in (("go", "already-answered"), ("other", "run-ended")):
            with pytest.raises(ResponseError) as refused:
                await client.signal(run_id, name)
            assert refused.value.status == 409
            assert refused.value.problem.endswith(problem)
        with pytest.raises(ResponseError, match="only dead and diverged"):
            await client.retry(run_id)
        for unknown in (client.signal(NOBODY, "go"), client.retry(NOBODY)):
            with pytest.raises(RunNotFound):
                await unknown

    play(server, scenario)


def test_a_dead_run_is_retried(server: Server) -> None:
    async def scenario(server: Server, proxy: TCPProxy, client: DurableClient) -> None:
        asked = {"prefer": "respond-async"}
        go = server.directory / "go-slowly"
        go.touch()
        run = client.stream("POST", "/gives-up", params={"what": "slowly"}, headers=asked)
        with pytest.raises(RunFailed, match="dead: ConnectionError"):
            async for _ in run:
                pass
        assert run.run_id is not None
        (server.directory / "mended-slowly").touch()
        go.unlink()  # else it may have ended before anybody says how it is
        assert await client.retry(run.run_id) == "running"
        go.touch()
        await until_status(client, run.run_id, "completed")

    play(server, scenario)
