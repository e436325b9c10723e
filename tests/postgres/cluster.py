"""Three server processes on one PostgreSQL behind a balancer: under load, in trouble, judged."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from durable_endpoints.frames import unpack
from durable_endpoints.testing import Violation
from tests.crash.evidence import (
    EXECUTIONS,
    AtKill,
    Stored,
    check_effects,
    marks,
    take_evidence,
)
from tests.crash.judge import Logs, Report, judge, read_logs
from tests.crash.workload import ENDPOINTS, Gate, Story, Workload
from tests.support.postgres import Cluster
from tests.support.server import Server, TCPProxy, free_port, let_go

APP = "tests.apps.clustered:app"
# A node that gets no processor for so long is not taken for a dead one.
TTL_S = 4.0
# What a busy machine may add to the time that a takeover takes.
SLACK_S = 8.0
FINISH_S = 60.0
PATIENCE_S = 30.0
# How many runs a node has when its trouble begins: some of them are still there when it is gone.
RUNS_MIN = 2
QUIET = ("--log-level", "warning", "--no-access-log")


class Balancer:
    """Leads each connection to one of the nodes that take some, by chance."""

    def __init__(self, nodes: list[Node], seed: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.led = Counter[int]()
        self._nodes = nodes
        self._chance = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._lead(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: let_go(writer))  # cancelled before it began, too

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        choice = [node for node in self._nodes if not node.out]
        self._chance.shuffle(choice)
        choice.sort(key=lambda node: self.led[node.server.port] > 0)  # nobody is left out
        for node in choice:
            try:
                down, up = await asyncio.open_connection("127.0.0.1", node.server.port)
            except OSError:
                continue
            self.led[node.server.port] += 1
            pumps = [asyncio.create_task(_pump(*pair)) for pair in ((down, writer), (reader, up))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                if pumps[0].done() and pumps[0].result():
                    writer.close()  # what the server said is passed on, its end too
            finally:
                for pump in pumps:
                    pump.cancel()
                up.transport.abort()
                let_go(writer)
                await asyncio.gather(*pumps, return_exceptions=True)
            return


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> bool:
    """Copy until the end: True if it was a clean one."""
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        return False
    return True


class Node:
    """One server process; its way to the database can be stalled."""

    def __init__(self, directory: Path, number: int, proxy: TCPProxy, address: str) -> None:
        self.proxy = proxy
        self.out = False  # taken out of the balance
        # A run that comes to nothing while the database is away is a suspect for no longer.
        env = {"CLUSTER_STORE": address, "BACKOFF_S": "0.2"}
        self.server = Server(APP, directory, env=env, options=QUIET)
        self.server.log = directory / f"server{number}.log"

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)
        self.out = False

    async def kill(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def well(self) -> None:
        """Wait until it has a lease, and has stopped what it drove under one that is over."""
        deadline = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(self.server._healthy):
            assert time.monotonic() < deadline, "a node does not come back"
            await asyncio.sleep(0.02)


class Patience(Gate):
    """The balancer always takes connections: whoever was refused waits for a moment."""

    async def wait(self) -> None:
        await asyncio.sleep(0.1)


class Fleet:
    """Everything together. `address` is the store, without any proxy."""

    def __init__(self, directory: Path, cluster: Cluster, seed: int, *, ttl_s: float) -> None:
        self.directory = directory
        self.cluster = cluster
        self.ttl_s = ttl_s
        self.address = cluster.address(lease_ttl=ttl_s)
        self.schema = self.address.partition("schema=")[2].partition("&")[0]
        self.chance = random.Random(seed)
        self.evidence: list[AtKill] = []
        self.report = Report(seed)
        self.takeovers_s: list[float] = []
        self.nodes: list[Node] = []
        self.stories: list[Story] = []
        self.logs: dict[str, Logs] = {}
        # (process, from, to): bytes of the executions' log that it may have written without a
        # lease: a node that was paused computes for a moment before it notices (I6).
        self.beside: list[tuple[int, int, int]] = []

    async def query(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Ask the database, as nobody's node; waits until it is there."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                connection = await asyncpg.connect(
                    self.cluster.url(), server_settings={"search_path": self.schema}
                )
                try:
                    return await connection.fetch(statement, *values)
                finally:
                    await connection.close()
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def stored(self) -> dict[str, Stored]:
        """Return every run as the database has it."""
        rows = await self.query("select run_id, name, status, attempts from runs")
        runs = {row["run_id"]: Stored(*row) for row in rows}
        frames = await self.query(
            "select run_id, first_seq, data from frames order by run_id, first_seq"
        )
        for run_id, first_seq, data in frames:
            if run_id in runs:  # there since
                runs[run_id].entries += unpack(data, first_seq)
        return runs

    async def look(self) -> None:
        """Compare what clients have seen by now with what is durable (I1); note what is final."""
        seen = {id(t): len(t.seen) for story in self.stories for t in story.transcripts}
        stored = await self.stored()
        for transcript in [t for story in self.stories for t in story.transcripts if t.run_id]:
            run_id = str(transcript.run_id)
            known = dict(marks(stored[run_id])) if run_id in stored else {}
            self.report.violations += [
                Violation("I1", run_id, f"{transcript.reader} had {item}, which is not durable")
                for item in transcript.seen[: seen.get(id(transcript), 0)]
                if item.offset is not None and known.get(item.offset) != item.mark
            ]
        self.evidence.append(take_evidence(self.directory, stored))
        self.report.kills += 1

    async def node_of(self, node: Node) -> str:
        """Return the store's name of a node."""
        (row,) = await self.query(
            "select node from nodes where host like $1 order by started_at desc limit 1",
            f"%:{node.server.pid}",
        )
        return str(row["node"])

    async def at_work(self, node: Node) -> str:
        """Return the store's name of a node, once it has more runs than end in a moment."""
        name = await self.node_of(node)
        deadline = time.monotonic() + PATIENCE_S
        while await self._running(name) < RUNS_MIN:
            assert time.monotonic() < deadline, "a node is given no runs"
            await asyncio.sleep(0.02)
        return name

    async def taken_over(self, name: str) -> None:
        """Wait until nothing is left to a node that is gone; note how much and how long (I16)."""
        began_s = time.monotonic()
        deadline = began_s + PATIENCE_S
        self.report.interrupted += await self._running(name)
        while await self._running(name):
            assert time.monotonic() < deadline, "runs of a node that is gone are not taken over"
            await asyncio.sleep(0.05)
        self.takeovers_s.append(time.monotonic() - began_s)

    async def _running(self, name: str) -> int:
        asked = "select count(*) from runs where owner = $1 and status = 'running'"
        return int((await self.query(asked, name))[0][0])

    def log_size(self) -> int:
        """Return the size of the executions' log."""
        return (self.directory / EXECUTIONS).stat().st_size

    def check_executions(self) -> list[Violation]:
        """Return the steps that ran again although their result was durable (I2)."""
        found, at = [], 0
        for line in (self.directory / EXECUTIONS).read_bytes().splitlines(keepends=True):
            run_id, label, _, pid = line.decode().split()
            beside = any(p == int(pid) and since <= at < to for p, since, to in self.beside)
            if not beside and any(
                at >= look.size and label in look.final.get(run_id, ()) for look in self.evidence
            ):
                found.append(Violation("I2", run_id, f"{label} ran again"))
            at += len(line)
        return found


Trouble = Callable[[Fleet], Awaitable[None]]


async def trial(
    directory: Path, cluster: Cluster, trouble: Trouble, *, seed: int, times: int,
    clients: int = 10, ttl_s: float = TTL_S,
) -> Fleet:  # fmt: skip
    """Let three nodes under load meet some trouble so many times, and judge what clients saw."""
    fleet = Fleet(directory, cluster, seed, ttl_s=ttl_s)
    began_s = time.monotonic()
    proxies = [TCPProxy(cluster.port) for _ in range(3)]
    async with proxies[0], proxies[1], proxies[2]:
        fleet.nodes = [
            Node(directory, number, proxy,
                 cluster.address(fleet.schema, port=proxy.port, lease_ttl=ttl_s))
            for number, proxy in enumerate(proxies)
        ]  # fmt: skip
        balancer = Balancer(fleet.nodes, seed)
        try:
            await asyncio.gather(*(node.start() for node in fleet.nodes))
            async with balancer.serving():
                await _under_load(fleet, balancer, trouble, times, clients)
        finally:
            for node in fleet.nodes:
                if node.server.running:
                    node.server.signal(signal.SIGCONT)
                    await node.kill()
    stored = await fleet.stored()
    no_finals = [AtKill(kill.size, {}, kill.unfinished) for kill in fleet.evidence]
    judge(directory, stored, fleet.stories, fleet.logs, no_finals, fleet.report)
    fleet.report.violations += fleet.check_executions() + check_effects(directory, stored)
    fleet.report.took_s = time.monotonic() - began_s
    return fleet


async def _under_load(
    fleet: Fleet, balancer: Balancer, trouble: Trouble, times: int, clients: int
) -> None:
    workload = Workload(balancer.url, fleet.report.seed, clients=clients, endpoints=ENDPOINTS)
    workload._gate = Patience(balancer.url)
    fleet.stories = workload.stories
    async with workload:
        for _ in range(times):
            await asyncio.sleep(fleet.chance.uniform(0.3, 1.0))
            await trouble(fleet)
            await fleet.look()
            workload.check_alive()
        stuck = await workload.finish(FINISH_S)
        fleet.logs = await read_logs(balancer.url, workload.stories, fleet.report)
    fleet.report.paths += workload.counts
    fleet.report.violations += [
        Violation("I16", str(story.run_id), f"{story.path} is stuck") for story in stuck
    ]
    assert len(balancer.led) == 3, "the balancer has used every node"
