"""A disk that fails: the process leaves with 70, nothing acknowledged is lost (I9, I10)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.crash.evidence import read_store
from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import CrashServer
from tests.faults.disk import FailingDisk, tmpfs, why_no_mounts, why_no_shims

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_no_shims()), reason=why_no_shims()),
]
LEFT = 70
REFUSED = 3  # uvicorn's code for a start that failed
SAYS = {LEFT: "the restart decides what is true", REFUSED: "durable.db cannot be opened"}


def life_until(disk: FailingDisk, plan: str, code: int, chance: random.Random) -> Life:
    """Return a life that ends when the disk fails, somewhere in the middle of the work."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        disk.fail(plan)
        try:
            await server.gone(code)
        finally:
            disk.heal()
        after = disk.calls_after_failure()
        assert not after, f"{plan}: after the failure the disk was asked {after}"
        return True

    return live


def test_a_failed_write_or_sync_ends_the_process_and_nothing_is_lost(tmp_path: Path) -> None:
    disk, chance = FailingDisk(tmp_path), random.Random(1)
    server = CrashServer(tmp_path, env=disk.env)
    plans = ("sync eio", "sync eio 3 once", "write eio", "write enospc 5", "sync enospc 2",
             "write eio 4 once", "sync eio 9", "write enospc 30 once")  # fmt: skip
    lives = [(plan, life_until(disk, plan, LEFT, chance)) for plan in plans]
    report = asyncio.run(kill_and_judge(tmp_path, 2, lives, clients=24, server=server))
    print(report)
    assert not report.violations, str(report)
    assert report.interrupted > len(plans), str(report)


def test_a_kill_at_a_sync_or_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    disk, chance = FailingDisk(tmp_path), random.Random(2)
    server = CrashServer(tmp_path, env=disk.env)
    plans = ["sync kill 1", "sync kill 2", "sync kill 7", "write kill 1", "write kill 3",
             "write kill 4", "write kill 8", "sync kill 30"]  # fmt: skip
    lives = [(plan, life_until(disk, plan, -signal.SIGKILL, chance)) for plan in plans]
    report = asyncio.run(kill_and_judge(tmp_path, 3, lives, clients=24, server=server))
    print(report)
    assert not report.violations, str(report)


@pytest.fixture
def interrupted(tmp_path: Path) -> tuple[CrashServer, FailingDisk, str]:
    """Return a dead server, its disk, and a run that it was at."""
    disk = FailingDisk(tmp_path)
    server = CrashServer(tmp_path, env={**disk.env, "LOCK_WAIT": "1"})
    while True:  # until a run is met that is not at its end
        server.start()
        with httpx.stream("POST", f"{server.url}/sse?n=40&ms=20") as response:
            next(response.iter_raw())
            server.kill()
        run_id = response.headers["durable-run-id"]
        if read_store(server.store)[run_id].status == "running":
            return server, disk, run_id


def ends(server: CrashServer, begin: Callable[[], object]) -> int:
    """Start a server that is to end by itself; return its exit code."""
    try:
        begin()
    except AssertionError as error:
        if "the server ended" not in str(error):
            raise
    return server.wait()


def completed(server: CrashServer, run_id: str) -> None:
    """Wait until a run is complete."""
    deadline = time.monotonic() + 60
    while True:
        status = httpx.get(f"{server.url}/_durable/runs/{run_id}").json()["status"]
        if status == "completed":
            return
        assert status == "running"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_disk_that_fails_at_the_start(
    number: int, interrupted: tuple[CrashServer, FailingDisk, str]
) -> None:
    """The n-th sync of a start that has something to recover: barrier, checkpoint, claim, ..."""
    server, disk, run_id = interrupted
    disk.fail(f"sync eio {number} once")
    code = ends(server, server.start)
    assert code in (LEFT, REFUSED), server.tail()
    assert not disk.calls_after_failure()
    assert SAYS[code] in server.tail(5), server.tail()
    disk.heal()
    server.start()
    completed(server, run_id)
    server.kill()


def test_a_disk_that_does_not_heal_refuses_every_start(
    interrupted: tuple[CrashServer, FailingDisk, str],
) -> None:
    server, disk, run_id = interrupted
    disk.fail("sync eio")
    for _ in range(2):
        assert ends(server, server.start) in (LEFT, REFUSED), server.tail()
    disk.heal()
    server.start()
    completed(server, run_id)
    server.kill()


def test_a_start_syncs_what_a_kill_left(tmp_path: Path) -> None:
    """I10: a commit that only the page cache knows is made durable before it is served."""
    disk = FailingDisk(tmp_path, files="durable.db-wal")
    server = CrashServer(tmp_path, env=disk.env)
    server.start()
    assert httpx.post(f"{server.url}/json?n=0").status_code == 200
    disk.fail("sync kill")
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{server.url}/json?n=0")  # all of it in one commit
    assert server.wait() == -signal.SIGKILL
    disk.fail("none")  # counts on, and fails nothing
    server.start()
    runs = httpx.get(f"{server.url}/_durable/runs").json()["runs"]
    # The commit was in the page cache and is served; nothing is left to recover, and to sync for.
    assert [run["status"] for run in runs] == ["completed"] * 2
    assert "sync ok" in disk.calls()
    server.kill()


def test_a_database_that_is_none_refuses_the_start(tmp_path: Path) -> None:
    server = CrashServer(tmp_path)
    server.store.write_bytes(b"no database, but a text of some length. " * 500)
    assert ends(server, server.start) == REFUSED
    assert SAYS[REFUSED] in server.tail(5), server.tail()
    assert server.store.read_bytes().startswith(b"no database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    place.chmod(stat.S_IRUSR | stat.S_IXUSR)
    server = CrashServer(tmp_path, store=place / "durable.db")
    assert ends(server, server.start) == REFUSED
    assert SAYS[REFUSED] in server.tail(5), server.tail()


def full(filler: Path) -> Life:
    """Return a life that ends when its disk is full; a restart is refused until there is room."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(0.3)
        fill(filler)
        # The log was given its room at the start; a body larger than that needs more.
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as http:
            while server.running:
                try:
                    await http.post("/sse?n=1", content=os.urandom(3 << 20))
                except httpx.TransportError:
                    break
        await server.gone(LEFT)
        refused = asyncio.create_task(asyncio.to_thread(ends, server, server.start))
        assert SAYS[await refused] in server.tail(5), server.tail()
        filler.unlink()
        return True

    return live


@pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts())
def test_a_full_disk(tmp_path: Path) -> None:
    """Real ENOSPC: exit, restarts refused until there is room, nothing lost."""
    with tmpfs(tmp_path / "disk", "48M") as disk:
        server = CrashServer(tmp_path, store=disk.mount_point / "durable.db",
                             env={"LOCK_WAIT": "1"})  # fmt: skip
        lives = [("disk full", full(disk.mount_point / "filler"))] * 2
        report = asyncio.run(kill_and_judge(tmp_path, 4, lives, clients=16, server=server))
    print(report)
    # Nobody waited for the answers of those that filled the disk: they are no story's.
    violations = [v for v in report.violations if "no client was told" not in v.detail]
    assert not violations, str(report)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_the_shim_is_in_the_way(tmp_path: Path) -> None:
    """The tests above prove nothing if the faults do not reach the process."""
    disk = FailingDisk(tmp_path)
    disk.fail("write enospc")
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={tmp_path}/durable.db", "bs=1", "count=1"],
        env={**os.environ, **disk.env},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert disk.calls() == ["write No space left on device"]
