"""Real power cuts: ext4 on a loop device loses what was not synced (I1, I2, I7, I8, I10)."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import CrashServer
from tests.faults.disk import FailingDisk, SmallDisk, ext4, why_no_mounts, why_no_shims

CUTS = 6
pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the ioctl is Linux's"),
    pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts()),
]


def cut(disk: SmallDisk, chance: random.Random) -> Life:
    """Return a life that ends with the power."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(chance.uniform(0.05, 0.6))
        if server.running:  # first: nobody is told anything by a process whose disk is dead
            server.signal(signal.SIGKILL)
        disk.cut_power()  # a sync that was under way may be cut
        await asyncio.to_thread(server.wait)
        disk.unmount()
        disk.mount()
        return True

    return live


def kill_at_sync(faults: FailingDisk, number: int) -> Life:
    """Return a life that is killed when a commit is in the page cache, and not yet on the disk."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        faults.fail(f"sync kill {number}")
        try:
            await server.gone(-signal.SIGKILL)
        finally:
            faults.heal()
        return True

    return live


def test_nothing_that_a_client_saw_is_lost_with_the_power(tmp_path: Path) -> None:
    chance = random.Random(5)
    with ext4(tmp_path / "disk", tmp_path / "image", 64) as disk:
        server = CrashServer(tmp_path, store=disk.mount_point / "durable.db")
        lives = [(f"cut {number}", cut(disk, chance)) for number in range(CUTS)]
        report = asyncio.run(kill_and_judge(tmp_path, 5, lives, clients=24, server=server))
    print(report)
    assert not report.violations, str(report)
    assert report.interrupted > CUTS, str(report)


@pytest.mark.skipif(bool(why_no_shims()), reason=why_no_shims())
def test_nothing_that_a_restart_showed_is_lost_with_the_power(tmp_path: Path) -> None:
    """I10: what a killed process left in the page cache is made durable before anybody sees it."""
    chance = random.Random(6)
    faults = FailingDisk(tmp_path)
    with ext4(tmp_path / "disk", tmp_path / "image", 64) as disk:
        server = CrashServer(tmp_path, store=disk.mount_point / "durable.db", env=faults.env)
        lives = []
        for number in (3, 8, 15):
            lives += [(f"kill at sync {number}", kill_at_sync(faults, number)),
                      (f"cut after {number}", cut(disk, chance))]  # fmt: skip
        report = asyncio.run(kill_and_judge(tmp_path, 6, lives, clients=24, server=server))
    print(report)
    assert not report.violations, str(report)
