"""Wall clocks that jump: nothing waits for them, nothing is lost to them (I16)."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import CrashServer
from tests.faults.disk import build, why_no_shims

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_shims()), reason=why_no_shims()),
]
DAY_S = 86_400


def jump(offset: Path, chance: random.Random) -> Life:
    """Return a life whose clock jumps about, killed in the end."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        for _ in range(4):
            offset.write_text(str(chance.choice((0, 3600, -3600, DAY_S, -DAY_S, 1, -1))))
            await asyncio.sleep(chance.uniform(0.05, 0.25))
        server.signal(signal.SIGKILL)
        await server.gone(-signal.SIGKILL)
        return True

    return live


def settle(offset: Path) -> Life:
    """Return a life whose clock is later than any before: what waits for a time is due."""

    async def live(server: CrashServer) -> bool:
        offset.write_text(str(2 * DAY_S))
        server.arm()
        await server.begin()
        server.signal(signal.SIGKILL)
        await server.gone(-signal.SIGKILL)
        return True

    return live


def environment(offset: Path) -> dict[str, str]:
    return {"LD_PRELOAD": str(build("moving_clock")), "CLOCK_OFFSET": str(offset)}


def test_jumps_while_runs_are_at_work_and_between_starts(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    server = CrashServer(tmp_path, env=environment(offset))
    lives = [(f"jump {n}", jump(offset, random.Random(n))) for n in range(4)]
    lives.append(("settle", settle(offset)))
    report = asyncio.run(kill_and_judge(tmp_path, 9, lives, clients=24, server=server))
    print(report)
    assert not report.violations, str(report)


def test_a_suspect_does_not_wait_for_a_clock_that_went_back(tmp_path: Path) -> None:
    """Its back-off is a few seconds, not the day by which the clock was wrong."""
    offset = tmp_path / "offset"
    server = CrashServer(tmp_path, env=environment(offset))
    server.start()
    headers = {"prefer": "respond-async"}
    with httpx.stream("POST", f"{server.url}/steady?ms=3000", headers=headers) as response:
        run_id = response.headers["durable-run-id"]
    server.restart()  # and killed again before its step is recorded: a suspect
    deadline = time.monotonic() + 20
    while show(server, run_id)["attempts"] == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.kill()
    offset.write_text(str(-DAY_S))
    server.start()
    deadline = time.monotonic() + 40
    while (now := show(server, run_id))["status"] != "completed":
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def show(server: CrashServer, run_id: str) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{server.url}/_durable/runs/{run_id}").json()
    return found
