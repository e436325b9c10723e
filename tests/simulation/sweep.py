"""Many schedules, on all cores: what they met, and which of them broke a promise."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from tests.simulation import programs
from tests.simulation.world import World, quiet, simulate
from tests.support import sometimes

CHUNK: Final = 25
ENOUGH: Final = 10_000  # schedules: the rarest point is met about once in 900
HANG_S: Final = 120


class Hangs(BaseException):
    """A callback does not end."""


@dataclass(frozen=True)
class Orders:
    """What is to be simulated."""

    first: int = 1
    schedules: int | None = None
    seconds: float | None = None
    jobs: int = 1
    sabotage: str = ""
    without: tuple[str, ...] = ()
    until_failure: bool = False  # the first broken promise ends it


@dataclass
class Tally:
    """What some schedules came to."""

    schedules: int = 0
    turns: int = 0
    virtual_s: float = 0.0
    processes: int = 0
    runs: int = 0
    events: int = 0
    digest: int = 0  # of all traces, whatever their order
    took_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)  # seed -> violations

    def add(self, other: Tally) -> None:
        """Take another one's figures in."""
        for name, value in vars(other).items():
            if name in ("seen", "failures"):
                getattr(self, name).update(value)
            elif name == "digest":
                self.digest ^= value
            else:
                setattr(self, name, getattr(self, name) + value)

    def take(self, world: World) -> None:
        """Count a world that has been lived."""
        self.schedules += 1
        self.turns += world.turns
        self.virtual_s += world.now - 1000
        self.processes += world.begun
        self.runs += len(world.disk.journals)
        self.events += sum(len(journal.events) for journal in world.disk.journals.values())
        self.digest ^= (world.seed << 32) | world.digest
        self.seen.update(world.seen)
        if world.violations:
            self.failures[world.seed] = [str(violation) for violation in world.violations[:5]]

    def __str__(self) -> str:
        per_minute = self.schedules / self.took_s * 60 if self.took_s else 0
        return (
            f"{self.schedules:,} schedules in {self.took_s:.0f} s ({per_minute:,.0f} a minute): "
            f"{self.processes:,} processes, {self.runs:,} runs, {self.events:,} events, "
            f"{self.turns:,} turns, {self.virtual_s / 3600:,.1f} simulated hours; "
            f"{len(self.failures)} schedules broke a promise"
        )


def unmet(tally: Tally, orders: Orders) -> list[str]:
    """Return the points and paths that these schedules had to meet and did not."""
    broken = orders.sabotage or orders.without or orders.until_failure
    if broken or tally.schedules < ENOUGH:
        return []
    return sometimes.missing(sometimes.SIMULATION, tally.seen)


def met(tally: Tally) -> str:
    """Say how many of the points and paths these schedules met."""
    every = sum(sometimes.SIMULATION in tiers for tiers in sometimes.table().values())
    left = len(sometimes.missing(sometimes.SIMULATION, tally.seen))
    return f"met {every - left} of {every} points and paths"


def lived(seeds: range, orders: Orders) -> Tally:
    """Live some schedules in this process."""
    tally = Tally()
    logging.disable(logging.CRITICAL)
    programs.WITHOUT.update(orders.without)
    old = signal.signal(signal.SIGALRM, _hangs)
    try:
        with quiet():
            for seed in seeds:
                signal.alarm(HANG_S)
                try:
                    tally.take(simulate(seed, sabotage=orders.sabotage))
                except (Exception, Hangs) as error:
                    cause = error.__cause__ or error
                    tally.failures[seed] = [f"the simulation itself failed: {error!r}: {cause!r}"]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        logging.disable(logging.NOTSET)
    return tally


def _hangs(*_: Any) -> None:
    raise Hangs(f"no end within {HANG_S} s")


def _chunks(orders: Orders) -> Iterator[range]:
    for number in count():
        begin = orders.first + number * CHUNK
        end = begin + CHUNK
        if orders.schedules is not None:
            end = min(end, orders.first + orders.schedules)
        if begin >= end:
            return
        yield range(begin, end)


def sweep(orders: Orders, progress: Callable[[Tally, float], None]) -> Tally:
    """Live schedules until there are enough, or the time is over; tell how far it is (0 to 1)."""
    began_s = time.monotonic()
    total = Tally()
    chunks = _chunks(orders)
    waiting: set[Future[Tally]] = set()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(orders.jobs, mp_context=context) as pool:
        while True:
            late = orders.seconds is not None and time.monotonic() - began_s >= orders.seconds
            late = late or (orders.until_failure and bool(total.failures))
            while not late and len(waiting) < 2 * orders.jobs and (seeds := next(chunks, None)):
                waiting.add(pool.submit(lived, seeds, orders))
            if not waiting:
                break
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for one in done:
                total.add(one.result())
            total.took_s = time.monotonic() - began_s
            far = total.schedules / orders.schedules if orders.schedules else 0.0
            if orders.seconds is not None:
                far = max(far, total.took_s / orders.seconds)
            progress(total, min(far, 1.0))
    return total
