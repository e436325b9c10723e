"""Runs are deleted, and their file vacuumed, under readers, and killed in between (I5, I21).

A reader gets what the run was, or is cut, or is told that the run is gone: never a part of it as
if it were the whole. A deletion that was answered stays one; a run that nobody deleted stays.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]
RUNS, DELETED = 6, 4
READERS = 3  # of each run
PIECES, KIB = 24, 128  # several reads of the store
TRIALS = 3
_GC = "from durable_endpoints.cli import main; main()"
_GONE = 410


@dataclass
class Trial:
    """One store: what its runs answered, and what was said of their deletion."""

    server: Server
    chance: random.Random
    bodies: dict[str, bytes] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)  # to be deleted
    deleted: set[str] = field(default_factory=set)  # as was answered
    wrong: list[str] = field(default_factory=list)
    cut: int = 0  # readers

    def fill(self) -> None:
        """Let some runs come to their end."""
        for _ in range(RUNS):
            url = f"{self.server.url}/bulk?n={PIECES}&kib={KIB}"
            answer = httpx.post(url, timeout=30)
            assert answer.status_code == 200
            self.bodies[answer.headers["durable-run-id"]] = answer.content

    async def race(self, *, killed: bool) -> None:
        """Read all runs while some are deleted; end the server by a kill, in the middle or not."""
        async with httpx.AsyncClient(base_url=self.server.url, timeout=30) as http:
            readers = [
                asyncio.create_task(self._read(http, run_id))
                for run_id in self.bodies
                for _ in range(READERS)
            ]
            deleting = asyncio.create_task(self._delete(http))
            if killed:
                await asyncio.sleep(self.chance.uniform(0, 0.4))
            else:
                await deleting
                await asyncio.sleep(0.2)
            self.server.signal(signal.SIGKILL)
            await asyncio.gather(deleting, *readers)
            await asyncio.to_thread(self.server.wait)

    async def _read(self, http: httpx.AsyncClient, run_id: str) -> None:
        while self.server.running:
            got = b""
            try:
                async with http.stream("GET", f"/_durable/runs/{run_id}/response") as answer:
                    if answer.status_code == _GONE:
                        if run_id not in self.asked:
                            self.wrong.append(f"{run_id} is gone, and nobody asked for it")
                        return
                    async for data in answer.aiter_raw():
                        got += data
                        await asyncio.sleep(self.chance.uniform(0, 0.004))
            except httpx.TransportError:
                self.cut += 1
                if not self.bodies[run_id].startswith(got):
                    self.wrong.append(f"{run_id}: a reader had other bytes")
                continue
            if answer.status_code != 503:  # it went while it was looked for: ask again
                self._judge(run_id, answer.status_code, got)

    def _judge(self, run_id: str, status: int, got: bytes) -> None:
        if status != 200 or got != self.bodies[run_id]:
            size = len(self.bodies[run_id])
            self.wrong.append(f"{run_id}: {status} with {len(got)} of {size} bytes, as the whole")

    async def _delete(self, http: httpx.AsyncClient) -> None:
        for run_id in self.chance.sample(sorted(self.bodies), DELETED):
            await asyncio.sleep(self.chance.uniform(0, 0.1))
            self.asked.add(run_id)
            try:
                answer = await http.delete(f"/_durable/runs/{run_id}")
            except httpx.TransportError:
                return
            if answer.status_code == 204:
                self.deleted.add(run_id)
            else:
                self.wrong.append(f"{run_id}: DELETE was answered {answer.status_code}")

    def vacuum(self, *, killed: bool) -> None:
        """Give the disk its space back while no server runs; nothing is old enough to go."""
        store = f"sqlite:///{self.server.directory}/durable.db"
        words = ["gc", "--older-than", "1d", "--vacuum", "--store", store]
        process = subprocess.Popen(
            [sys.executable, "-c", _GC, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if killed:
            time.sleep(self.chance.uniform(0.1, 0.8))
            process.kill()
        output, _ = process.communicate(timeout=60)
        if process.returncode not in (0, -signal.SIGKILL):
            self.wrong.append(f"the vacuum ended with {process.returncode}: {output.decode()}")

    def look(self) -> None:
        """Ask a new process for every run."""
        self.server.start()
        for run_id in self.bodies:
            answer = httpx.get(f"{self.server.url}/_durable/runs/{run_id}/response", timeout=30)
            if answer.status_code != _GONE:
                self._judge(run_id, answer.status_code, answer.content)
                if run_id in self.deleted:
                    self.wrong.append(f"{run_id} was deleted, and is there")
            elif run_id not in self.asked:
                self.wrong.append(f"{run_id} is gone, and nobody asked for it")
        self.server.kill()


def trial(place: Path, seed: int) -> Trial:
    """Delete, read, kill, vacuum, look."""
    place.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{place}/durable.db"
    server = Server("tests.apps.bulky:app", place, env={"STORE": store})
    found = Trial(server, random.Random(f"retention/{seed}"))
    with server:
        found.fill()
        asyncio.run(found.race(killed=seed % 3 > 0))
    found.vacuum(killed=seed % 2 > 0)
    try:
        found.look()
    finally:
        if server.running:
            server.kill()
    return found


def trials(place: Path, count: int, seed: int, done: Callable[[int], None]) -> list[str]:
    """Return what was wrong in so many trials."""
    wrong: list[str] = []
    for number in range(count):
        wrong += [f"seed {seed + number}: {one}" for one in
                  trial(place / str(number), seed + number).wrong]  # fmt: skip
        done(number + 1)
    return wrong


def test_readers_of_runs_that_are_deleted(tmp_path: Path) -> None:
    some = [trial(tmp_path / str(seed), seed) for seed in range(TRIALS)]
    print([(len(one.asked), len(one.deleted), one.cut) for one in some])
    assert not [wrong for one in some for wrong in one.wrong]
    assert sum(len(one.deleted) for one in some) >= DELETED
    assert sum(one.cut for one in some) > 0
