"""The last half hour of the engine's own numbers, taken while somebody uses the console."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from durable_endpoints.engine.meters import Histogram, Meters

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

EVERY_S: Final = 5.0
KEPT: Final = 360
_IDLE_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was true at one moment, and since the moment before."""

    commits_s: float
    behind: int  # entries appended and not yet durable
    live: int
    readers: int
    late_ms: float  # by how much the event loop was late
    lag_ms: float  # since when the oldest entry that is not durable has been waiting
    commit_ms: float  # the mean of the commits since
    slow_ms: float  # one commit in a hundred took longer, within a factor of two
    batch: float  # entries of a commit, on the average
    retries_s: float  # attempts of steps that failed, a second
    log_bytes: int


class Sampler:
    """Takes a sample every few seconds, and stops when nobody has looked for half an hour."""

    def __init__(self, engine: Engine) -> None:
        self.samples: deque[Sample] = deque(maxlen=KEPT)
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._asked_s = 0.0
        self._commits: int | None = None
        self._at_s = 0.0
        self._meters: Meters | None = None
        self._commits_us, self._batches = Histogram(), Histogram()
        self._retries = 0

    def wanted(self) -> None:
        """Begin to sample, or go on."""
        loop = asyncio.get_running_loop()
        self._asked_s = loop.time()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._commits = None
            self._task = self._engine.spawn(self._run(loop))

    def take(self, late_s: float = 0.0) -> Sample | None:
        """Take one sample now; None for the first, which has nothing to compare with."""
        engine = self._engine
        now_s = asyncio.get_running_loop().time()
        commits, before = engine.log.commits, self._commits
        passed_s = now_s - self._at_s
        self._commits, self._at_s = commits, now_s
        meters = engine.log.meters
        if before is None or passed_s <= 0 or meters is not self._meters:
            self._keep(meters)
            return None
        took = meters.commits_us.since(self._commits_us)
        sizes = meters.batches.since(self._batches)
        runs = list(engine.runs.values())
        sample = Sample(
            max(0, commits - before) / passed_s,
            sum(max(0, run.seq - 1 - run.durable_seq) for run in runs),
            len(runs),
            meters.readers,
            late_s * 1000,
            engine.log.lag_s * 1000,
            took.mean / 1000,
            took.quantile(0.99) / 1000,
            sizes.mean,
            max(0, meters.retries - self._retries) / passed_s,
            file_size(engine, "-wal"),
        )
        self._keep(meters)
        self.samples.append(sample)
        return sample

    def _keep(self, meters: Meters) -> None:
        """Keep the counts that the next sample begins from."""
        self._meters = meters
        self._commits_us, self._batches = meters.commits_us.copy(), meters.batches.copy()
        self._retries = meters.retries

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        due_s = loop.time()
        while self._engine.is_open and loop.time() - self._asked_s < _IDLE_S:
            self.take(max(0.0, loop.time() - due_s))
            due_s = loop.time() + EVERY_S
            await asyncio.sleep(EVERY_S)


def file_size(engine: Engine, suffix: str = "") -> int:
    """Return the size of the store's file, if it is one."""
    path = getattr(engine.store, "path", None)
    if not isinstance(path, Path):
        return 0
    file = path.with_name(path.name + suffix)
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
