"""Three nodes are killed in turn while their runs exclude each other and share a limit."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections import Counter
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.support.postgres import Cluster
from tests.support.server import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]
TTL_S = 4  # a node that gets no processor for so long is not taken for a dead one
AT_A_TIME = 2  # as in the app
KILLS = 4
CLIENTS = 8
KEYS = 3
RUNS_MIN = 21
PATIENCE_S = 90


class Trial:
    """The servers, the clients, and what they were told."""

    def __init__(self, directory: Path, cluster: Cluster, seed: int) -> None:
        self.directory = directory
        self.address = cluster.address(lease_ttl=TTL_S)
        self.chance = random.Random(seed)
        self.servers = []
        for number in range(3):
            server = Server(
                "tests.apps.keyed:app", directory, env={"CLUSTER_STORE": self.address},
                options=("--log-level", "warning", "--no-access-log"),
            )  # fmt: skip
            server.log = directory / f"server{number}.log"
            self.servers.append(server)
        self.told: dict[str, set[str]] = {}  # what a request was -> run ids it was told
        self.refused = Counter[int]()
        self.over = False

    async def ask(self, client: httpx.AsyncClient, path: str, key: str) -> None:
        """Ask some node until one has an answer."""
        while True:
            url = self.chance.choice(self.servers).url + path
            try:
                answer = await client.post(url, headers={"idempotency-key": key})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.told.setdefault(key, set()).add(answer.headers["durable-run-id"])
                if "/queue/" in path:
                    assert answer.json()["run"] == answer.headers["durable-run-id"]
                return
            self.refused[answer.status_code] += 1
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)

    async def call(self, client: httpx.AsyncClient, number: int) -> None:
        """Be a client: each request goes out twice in the same moment."""
        count = 0
        while not self.over:
            policy = self.chance.choice(("queue", "queue", "attach"))
            path = f"/{policy}/t{self.chance.randrange(KEYS)}?nonce={number}-{count}"
            key = f"k{number}-{count}"
            await asyncio.gather(*(self.ask(client, path, key) for _ in range(2)))
            count += 1

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=httpx.Timeout(PATIENCE_S), limits=limits) as client:
            await asyncio.gather(*(asyncio.to_thread(server.start) for server in self.servers))
            calls = [asyncio.create_task(self.call(client, number)) for number in range(CLIENTS)]
            for _ in range(KILLS):
                await asyncio.sleep(self.chance.uniform(0.7, 1.5))
                server = self.chance.choice(self.servers)
                await asyncio.to_thread(self.kill, server)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(1)
            async with asyncio.timeout(PATIENCE_S):
                while len(set().union(*self.told.values())) < RUNS_MIN:
                    await asyncio.sleep(0.05)
                self.over = True
                await asyncio.gather(*calls)

    def kill(self, server: Server) -> None:
        """Kill it, and note that at once: others may use the limit when its lease is over."""
        pid = server.pid
        server.kill()
        with (self.directory / "work.log").open("a") as log:
            log.write(f"killed - - {pid}\n")

    async def rows(self) -> list[asyncpg.Record]:
        url, _, query = self.address.partition("?")
        schema = query.partition("schema=")[2].partition("&")[0]
        connection = await asyncpg.connect(url, server_settings={"search_path": schema})
        try:
            return list(await connection.fetch("select * from runs order by turn"))
        finally:
            await connection.close()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in (self.directory / "work.log").read_text().splitlines()]


def check_turns(lines: list[list[str]]) -> dict[str, list[str]]:
    """Return the runs of each key in the order in which they began; none began twice over."""
    begun: dict[str, list[str]] = {}
    ended: set[str] = set()
    for word, key, run_id, _ in lines:
        if word == "begin":
            order = begun.setdefault(key, [])
            if not order or order[-1] != run_id:
                assert run_id not in order, f"{run_id} of {key} again, after another one's turn"
                assert not order or order[-1] in ended, f"{run_id} beside {order[-1]} of {key}"
                order.append(run_id)
        elif word == "end":
            ended.add(run_id)
    return begun


def check_uses(lines: list[list[str]]) -> int:
    """Return how many used the limit at a time, at most."""
    at_it = Counter[str]()
    most = 0
    for word, _, _, pid in lines:
        if word == "use":
            at_it[pid] += 1
        elif word == "used":
            at_it[pid] -= 1
        elif word == "killed":
            at_it[pid] = 0
        most = max(most, at_it.total())
    return most


def test_i6_i7_i16_keys_and_limits_hold_while_nodes_are_killed(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    seed = pytestconfig.getoption("--fleet-seed", None) or secrets.randbelow(1_000_000)
    print("seed", seed)
    trial = Trial(tmp_path, cluster, seed)
    try:
        asyncio.run(trial.run())
    finally:
        for server in trial.servers:
            if server.running:
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
    rows = asyncio.run(trial.rows())
    lines = trial.lines()
    begun = check_turns(lines)
    assert {row["status"] for row in rows} == {"completed"}
    assert check_uses(lines) == AT_A_TIME
    # One request, sent twice at the same moment and again after each failure, is one run; one that
    # was attached to another's run has left its key to whoever comes next.
    for row in rows:
        if row["name"] == "POST /queue/{thread}":
            assert trial.told[row["idempotency_key"].split()[-1]] == {row["run_id"]}
    for number in range(KEYS):
        opened = [row["run_id"] for row in rows if row["concurrency_key"] == f"t{number}"
                  and row["name"] == "POST /queue/{thread}"]  # fmt: skip
        assert begun.get(f"queue/t{number}", []) == opened
    assert len(rows) >= RUNS_MIN
    print(len(rows), "runs,", len(trial.told), "requests, refused", dict(trial.refused))
