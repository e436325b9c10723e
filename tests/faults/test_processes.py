"""Several processes, stopped processes, signals: the store has one owner (I6), drains are safe."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import QUIET, CrashServer
from tests.support.server import ROOT, Server, free_port

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]
REFUSED = 3
LONG = "/tokens/resume?n=400&ms=100"  # some 20 s: longer than any drain


def test_a_second_process_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    with CrashServer(tmp_path, env={"LOCK_WAIT": "1"}) as first:
        with httpx.stream("POST", f"{first.url}/sse?n=30&ms=20") as response:
            second = CrashServer(tmp_path / "other", store=first.store, env={"LOCK_WAIT": "1"})
            with pytest.raises(AssertionError, match="in use by another process"):
                second.start()
            assert second.wait() == REFUSED
            assert "run a single worker" in second.tail()
            body = b"".join(response.iter_raw())
        assert body.endswith((b"data: open\r\n\r\n", b"data: open\n\n"))
        assert httpx.post(f"{first.url}/json?n=2&ms=0").status_code == 200


def test_several_workers_are_refused_with_what_to_do(tmp_path: Path) -> None:
    """`--workers 2`: one of them owns the store, the other one says why it cannot."""
    server = Server(
        "tests.apps.crashy:app", tmp_path, env={"LOCK_WAIT": "1"},
        options=("--workers", "2", *QUIET),
    )  # fmt: skip
    with server:
        deadline = time.monotonic() + 30
        while "run a single worker (no --workers)" not in server.tail():
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.05)
        server.terminate()


def test_a_successor_waits_for_its_predecessor(tmp_path: Path) -> None:
    """As with --reload: the new process starts while the old one is about to leave."""
    with CrashServer(tmp_path) as old:
        new = CrashServer(tmp_path / "new", store=old.store)
        starting = subprocess.Popen(
            [sys.executable, "-c", "import sys; from pathlib import Path;"
             "from tests.crash.process import CrashServer;"
             f"s = CrashServer(Path({str(tmp_path / 'new')!r}), store=Path({str(old.store)!r}));"
             "s.start(); s.kill(); print('served')"],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        time.sleep(0.5)
        assert new.store == old.store
        old.kill()
        output, _ = starting.communicate(timeout=30)
        assert output.strip() == b"served"


def test_a_forked_child_does_not_keep_the_store(tmp_path: Path) -> None:
    """A process pool outlives a killed server; the next one must start all the same."""
    server = CrashServer(tmp_path, env={"LOCK_WAIT": "1"})
    server.start()
    child = httpx.post(f"{server.url}/fork").json()["child"]
    try:
        server.kill()
        os.kill(child, 0)  # it lives
        server.port = free_port()  # the child has the listening socket, which is not ours to close
        server.url = f"http://127.0.0.1:{server.port}"
        server.start()
        assert httpx.post(f"{server.url}/json?n=2&ms=0").status_code == 200
        server.kill()
    finally:
        os.kill(child, signal.SIGKILL)


def pause(chance: random.Random) -> Life:
    """Return a life with pauses, killed in the end."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        for _ in range(3):
            await asyncio.sleep(chance.uniform(0, 0.2))
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.1, 1.3))
            server.signal(signal.SIGCONT)
        server.signal(signal.SIGKILL)
        await server.gone(-signal.SIGKILL)
        return True

    return live


def test_pauses(tmp_path: Path) -> None:
    """SIGSTOP for longer than the window's age, then on, then a kill."""
    lives = [(f"pause {n}", pause(random.Random(n))) for n in range(3)]
    report = asyncio.run(kill_and_judge(tmp_path, 7, lives, clients=24))
    print(report)
    assert not report.violations, str(report)


def drain(chance: random.Random) -> Life:
    """Return a life that ends by SIGTERM, or by SIGTERM and then SIGKILL."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(chance.uniform(0, 0.6))
        server.signal(signal.SIGTERM)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.uniform(0, 0.5))
            if server.running:
                server.signal(signal.SIGKILL)
        await asyncio.to_thread(server.wait, 25)
        return True

    return live


def test_sigterm_at_random(tmp_path: Path) -> None:
    """I22: a drain is as safe as a kill."""
    lives = [(f"drain {n}", drain(random.Random(n))) for n in range(8)]
    report = asyncio.run(kill_and_judge(tmp_path, 8, lives, clients=24))
    print(report)
    assert not report.violations, str(report)


async def _leave_with_a_long_run(directory: Path, point: str) -> tuple[int, str, CrashServer]:
    server = CrashServer(directory)
    server.arm(**({"DURABLE_CRASH_AT": point} if point else {}))
    await server.begin()
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        http.stream("POST", LONG) as response,
    ):
        run_id = response.headers["durable-run-id"]
        told = False
        with pytest.raises(httpx.TransportError):  # never a clean end: the run is not at its own
            async for chunk in response.aiter_raw():
                if not told and b"token" in chunk:
                    server.signal(signal.SIGTERM)
                    told = True
    return await asyncio.to_thread(server.wait, 40), run_id, server


def test_a_drain_leaves_long_runs_to_the_next_process(tmp_path: Path) -> None:
    """A run that outlasts the grace: cut, released, taken up; also with a kill in mid-drain."""
    points = ("", "release.begin", "release.done", "close.begin", "close.done")

    async def scene() -> None:
        left = await asyncio.gather(
            *(_leave_with_a_long_run(tmp_path / (point or "clean"), point) for point in points)
        )
        for point, (code, run_id, server) in zip(points, left, strict=True):
            wanted = {-signal.SIGKILL} if point else {0, -signal.SIGTERM}
            assert code in wanted, (point, code, server.tail())
            server.arm()
            await server.begin()
            try:
                await _goes_on(server, run_id)
            finally:
                await asyncio.to_thread(server.kill)

    asyncio.run(scene())


async def _goes_on(server: CrashServer, run_id: str) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        before = (await http.get(f"/_durable/runs/{run_id}")).json()
        assert before["status"] == "running", before
        assert before["attempts"] <= 2, before
        deadline = time.monotonic() + 20
        while (now := (await http.get(f"/_durable/runs/{run_id}")).json())["events"] <= (
            before["events"] + 3
        ):
            assert time.monotonic() < deadline, now
            await asyncio.sleep(0.05)
        assert (await http.post(f"/_durable/runs/{run_id}/cancel")).status_code == 202
