"""A server under load for long: its memory, descriptors and log stay what they are."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import pytest

from durable_endpoints.limits import CHECKPOINT_FORCE_BYTES
from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import CrashServer

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's"),
]
_LIVE = re.compile(r"^durable_runs_live\{.*\} (\d+)", re.MULTILINE)
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
LOOK_S = 0.5
WARM_S = 5.0  # until code is loaded, caches and pools are full
LIFE_S = 18.0
# What load that comes and goes may add to a median over a third of a life.
SLACK_BYTES, SLACK_FILES, SLACK_RUNS = 4 * MIB, 24, 40
# A commit may begin just below the bound, and a checkpoint waits for readers.
LOG_BYTES_MAX = 3 * CHECKPOINT_FORCE_BYTES


@dataclass
class Figures:
    """What was seen of one life."""

    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)  # in memory
    log: list[int] = field(default_factory=list)

    async def look(self, server: CrashServer) -> None:
        """Take the figures of this moment."""
        with open(f"/proc/{server.pid}/statm") as figures:
            self.memory.append(int(figures.read().split()[1]) * PAGE)
        self.files.append(len(os.listdir(f"/proc/{server.pid}/fd")))
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            said = (await http.get("/_durable/metrics")).text
        self.runs.append(sum(int(count) for count in _LIVE.findall(said)))
        wal = server.store.with_name(server.store.name + "-wal")
        self.log.append(wal.stat().st_size)

    def grown(self) -> list[str]:
        """Return what has grown from the first third to the last."""
        found = []
        for name, values, slack in (
            ("memory", self.memory, SLACK_BYTES), ("descriptors", self.files, SLACK_FILES),
            ("runs", self.runs, SLACK_RUNS),
        ):  # fmt: skip
            third = len(values) // 3
            early, late = median(values[:third]), median(values[-third:])
            if late > early + slack:
                found.append(f"{name}: {early:,.0f} at first, {late:,.0f} in the end")
        if max(self.log) > LOG_BYTES_MAX:
            found.append(f"the log: {max(self.log):,} bytes")
        return found


def long_life(chance: random.Random, seen: list[Figures], life_s: float = LIFE_S) -> Life:
    """Return a life that is watched: now and then it is stopped for a moment; then it is killed."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(WARM_S)
        seen.append(Figures())
        for _ in range(int((life_s - WARM_S) / LOOK_S)):
            await asyncio.sleep(LOOK_S)
            await seen[-1].look(server)
            if chance.random() < 0.1:
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0, 0.3))
                server.signal(signal.SIGCONT)
        server.signal(signal.SIGKILL)
        await server.gone(-signal.SIGKILL)
        return True

    return live


def lives(place: Path, count: int, seed: int, done: Callable[[int], None]) -> list[str]:
    """Watch so many lives over one store; return what was wrong."""
    seen: list[Figures] = []
    chance = random.Random(f"soak/{seed}")
    some = [(f"long {number}", long_life(chance, seen)) for number in range(count)]
    report = asyncio.run(
        kill_and_judge(place, seed, some, clients=16, progress=lambda _: done(len(seen)))
    )
    print([(one.memory[:: len(one.memory) // 5], one.runs, one.files[-1]) for one in seen])
    grown = [f"life {at}: {what}" for at, figures in enumerate(seen) for what in figures.grown()]
    return [*map(str, report.violations), *grown]


def test_nothing_grows(tmp_path: Path) -> None:
    assert not lives(tmp_path, 1, 11, lambda _: None)
