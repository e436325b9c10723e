"""A world: a disk, the processes that come and go over it, and the clients that outlive them.

Everything in it is drawn from one seed. `World(seed).run()` lives it to its end and returns what
was wrong with it: the invariants are checked at each commit and at each event that a reader gets,
against what the disk has at that moment.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.testing import Violation
from tests.simulation import knobs
from tests.simulation.disk import ENDED, Disk
from tests.simulation.process import Gone, Process
from tests.simulation.weather import End, draw_ends, draw_weather, sought

if TYPE_CHECKING:
    from tests.simulation.clients import Client

PATIENCE_S: Final = 3000.0  # of virtual time, for the last process to bring all to its end
TURNS_MAX: Final = 400_000
# A poison run ends six of them, and as many again each time that somebody revives it.
PROCESSES_MAX: Final = 36
DEATHS_OF_ONE_MAX: Final = 24
TRACE_MAX: Final = 5_000


class World:
    """One schedule."""

    def __init__(self, seed: int, *, sabotage: str = "", trace: bool = False) -> None:
        from tests.simulation.clients import draw_clients

        self.seed = seed
        self.chance = Random(f"world/{seed}")
        plan = Random(f"plan/{seed}")
        self.weather = draw_weather(plan)
        self.ends = draw_ends(plan, seed)
        self.sought = sought(seed)
        self.now = 1000.0
        self.skew_ms = self.ahead_ms = 0  # of the wall clock, now and at most
        self.seen: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.trace: list[str] = []
        self.digest = 0
        self.turns = 0
        self.known: list[str] = []  # runs that clients were told of
        self.sabotage = sabotage
        self.begun = 0  # processes
        self._tracing = trace
        self.effect_keys: dict[tuple[str, str], str] = {}
        self.acted: Counter[tuple[str, str]] = Counter()
        self.received: dict[str, str] = {}  # what the receiver of the effects has, by key
        self.mended: set[str] = set()  # runs whose trouble is over
        self._nonces = 0
        self._deaths: Counter[str] = Counter()
        self.disk = Disk(self)
        self.clients: list[Client] = draw_clients(plan, self)
        self.process: Process | None = None  # the one that has the turn
        self.processes: list[Process] = []

    # --- what others ask of it

    def spend(self) -> None:
        """Let a moment pass."""
        if self.weather.look_s:
            self.now += self.chance.random() * self.weather.look_s

    def wall_ms(self) -> int:
        """Return the time on the wall."""
        return int(self.now * 1000) + 1_800_000_000_000 + self.skew_ms

    def jitter(self) -> float:
        """Return how late a timer is."""
        return self.chance.random() * 1e-6

    def latency(self, *, writes: bool) -> float:
        """Return how long one half of a store operation takes."""
        chance, weather = self.chance, self.weather
        if writes and weather.stall and chance.random() < weather.stall:
            return chance.uniform(0.2, 1.5)
        return chance.random() * weather.latency_s

    def pause(self) -> float:
        """Return how long a step takes."""
        chance = self.chance
        if not self.weather.pause_s or chance.random() < 0.4:
            return 0.0
        return chance.random() * self.weather.pause_s

    def fails(self, process: Process, name: str) -> str | None:
        """Say whether a store operation is to fail, and whether it was done all the same."""
        end = process.end
        if end.how != "fail" or end.point != name:
            return None
        end.count -= 1
        if end.count > 0:
            return None
        self.sometimes(f"{name} fails, {end.certain}")
        return end.certain

    def next_nonce(self) -> int:
        """Return a number that no other execution has."""
        self._nonces += 1
        return self._nonces

    def count_death(self, who: str) -> int:
        """Count how often a program has taken its process with it."""
        self._deaths[who] += 1
        return self._deaths[who]

    def current(self, process: Process) -> tuple[str, int]:
        """Return the run that the caller is part of, and the epoch of its attempt."""
        scope = SCOPE.get()
        assert scope is not None, "a step outside of any run"
        return scope.run.id, scope.run.record.epoch

    def owns(self, process: Process, run_id: str, epoch: int) -> bool:
        """Say whether a run is this process's to work for (a zombie may compute, I6)."""
        return not process.succeeded and self.disk.journals[run_id].epoch == epoch

    def got(self, run_id: str, value: Any) -> None:
        """Compare what a handler was given with what is durable (I2)."""
        label = str(value).partition("=")[0]
        journal = self.disk.journals.get(run_id)
        recorded = None if journal is None else journal.final.get(label)
        if recorded is not None and value not in recorded and self.process is not None:
            scope = SCOPE.get()
            if scope is not None and self.owns(self.process, run_id, scope.run.record.epoch):
                self.blame("I2", run_id, f"{label} gave {value!r}, its journal holds {recorded}")

    def heard(self, run_id: str, label: str, data: Any) -> None:
        """Compare what a handler got by a signal with what was sent for it."""
        if data["to"] != label:
            self.blame("I16", run_id, f"{label} got the signal for {data['to']}")

    def sometimes(self, what: str) -> None:
        """Count that something happened."""
        self.seen[what] += 1

    def note(self, what: str) -> None:
        """Add a line to the trace; every line is part of the digest."""
        line = f"{self.now:.6f} p{self.process.number if self.process else '-'} {what}"
        self.digest = crc32(line.encode(), self.digest)
        self.trace.append(line)
        if len(self.trace) > TRACE_MAX and not self._tracing:
            del self.trace[: TRACE_MAX // 2]

    def blame(self, invariant: str, run_id: str, detail: str) -> None:
        """Note a violation; the schedule ends after this turn."""
        self.violations.append(Violation(invariant, run_id, detail))
        self.note(f"VIOLATION {self.violations[-1]}")

    def crashed(self, error: BaseException) -> None:
        """Take the error that a client of ours met."""
        if not isinstance(error, Gone):
            raise AssertionError(f"seed {self.seed}: a client died") from error

    # --- its life

    def run(self) -> list[Violation]:
        """Live to the end; return what was wrong."""
        hooks = sys.get_asyncgen_hooks()
        try:
            with knobs.turned(self.weather.limits, self):
                self._live()
        finally:
            sys.set_asyncgen_hooks(*hooks)
            knobs.no_loop()
            self.process = None
            for process in self.processes:
                process.die("the world's end")
            self.processes.clear()
        return self.violations

    def _live(self) -> None:
        zombies: list[Process] = []
        while not self.violations:
            end = self.ends.pop(0) if len(self.ends) > 1 else End("calm")
            process = Process(self, self.begun, end)
            self.processes.append(process)
            self.begun += 1
            poisons = sum(client.poison > 0 for client in self.clients)
            if self.begun > PROCESSES_MAX + poisons * DEATHS_OF_ONE_MAX:
                self.blame("I17", "?", "a crash loop without an end")
                return
            self.note(f"process {process.number} begins: {end}")
            for client in self.clients:
                client.leave()
            process.begin()
            if self._one_life(process, zombies):
                return

    def _one_life(self, process: Process, zombies: list[Process]) -> bool:
        """Turn until the process has ended; True if all is done."""
        begun_s = self.now
        for zombie in zombies:
            zombie.end.at_s = self.now + self.chance.uniform(0, 0.5)
        living = [*zombies, process]
        while True:
            self._turn(living)
            if self.violations:
                return True
            if process.dead:
                if self.chance.random() < 0.2:
                    self.skew_ms += self.chance.choice((-600_000, 600_000, 3_600_000, 1, -1))
                    self.ahead_ms = max(self.ahead_ms, self.skew_ms)
                return False
            if process.turns >= process.end.turns and self._interrupt(process, zombies):
                return False
            for zombie in list(zombies):
                self._wake_zombie(zombie, living, zombies)
            if self.turns & 15:
                continue
            if self._settled(process):
                return True
            calm = process.end.how == "calm"
            # A wait that was begun while the clock was ahead lasts until it is there again.
            patience_s = PATIENCE_S + (self.ahead_ms - self.skew_ms) / 1000
            if (calm and self.now > begun_s + patience_s) or self.turns > TURNS_MAX:
                self._stuck()
                return True

    def _turn(self, living: list[Process]) -> None:
        """Let one process run one callback, or time pass."""
        self.turns += 1
        if len(living) == 1:
            [process] = living
            if not process.loop.due(self.now):
                self.now = max(self.now, process.loop.next_timer or self.now)
                return
        else:
            able = [p for p in living if not p.dead and not p.paused and p.loop.due(self.now)]
            if not able:
                timers = [t for p in living if not p.dead and not p.paused
                          if (t := p.loop.next_timer) is not None]  # fmt: skip
                waking = [p.end.at_s for p in living if p.paused and p.end.at_s > self.now]
                self.now = max(self.now, min(timers + waking, default=self.now))
                return
            process = self.chance.choice(able)
        if self.process is not process:
            self.process = process
            process.loop.enter()
        process.turns += 1
        process.loop.turn()
        if self.weather.cost_s:
            self.now += self.chance.random() * self.weather.cost_s

    def _interrupt(self, process: Process, zombies: list[Process]) -> bool:
        """End, stop or drain a process from outside; True if the next one is to begin."""
        how, process.end.turns = process.end.how, 1 << 40
        if how == "zombie":
            self.sometimes("a process is stopped, and its successor begins")
            process.paused = process.succeeded = True
            process.engine.leaving = True  # or it would take its runs back
            zombies.append(process)
            return True
        if how == "drain":
            self.sometimes("a process drains")
            process.spawn(self._drain(process))
            if self.chance.random() < 0.4:
                process.end.how, process.end.turns = (
                    "turns",
                    process.turns + self.chance.randrange(200),
                )
            return False
        self.sometimes("crash after some turns")
        process.die("from outside")
        return True

    async def _drain(self, process: Process) -> None:
        await process.engine.drain(process.end.at_s)
        process.reach("drain.done")
        await process.engine.close()
        self.sometimes("a process has drained")
        process.die("in good order")

    def _wake_zombie(self, zombie: Process, living: list[Process], zombies: list[Process]) -> None:
        if zombie.paused and self.now >= zombie.end.at_s and self._is_succeeded(zombie):
            self.sometimes("a stopped process goes on")
            zombie.paused = False
            zombie.end.at_s = self.now + 0.4
        elif zombie.dead or (not zombie.paused and self.now > zombie.end.at_s):
            zombie.die("it was a zombie")
            living.remove(zombie)
            zombies.remove(zombie)
            if living[-1].booted:
                living[-1].attach()

    def _is_succeeded(self, zombie: Process) -> bool:
        """Say whether somebody else has charge of all that a stopped process was at."""
        return not any(
            journal.owner == zombie.number and self.disk.status(run_id) == "running"
            for run_id, journal in self.disk.journals.items()
        )

    # --- its end

    def _settled(self, process: Process) -> bool:
        return (
            process.booted
            and all(client.done for client in self.clients)
            and all(map(self._waits_for_nobody, self.disk.unfinished()))
        )

    def _waits_for_nobody(self, run_id: str) -> bool:
        """Say whether a run waits, and the one who began it was never told of it."""
        row = self.disk.store._runs[run_id]
        return row.status == "suspended" and row.parent is None and run_id not in self.known

    def _stuck(self) -> None:
        left = [f"{run_id} {self.disk.status(run_id)}" for run_id in self.disk.unfinished()]
        waiting = [str(client) for client in self.clients if not client.done]
        self.blame("I16", "?", f"it does not end: runs {left}, clients {waiting}")

    def check_end(self) -> None:
        """Compare what is left with what it must be."""
        for run_id, journal in self.disk.journals.items():
            self.sometimes(f"a run is {self.disk.status(run_id)}")
            if self.disk.status(run_id) in ENDED - {"dead"} and journal.terminal is None:
                self.blame("I15", run_id, "it has ended without a terminal entry")
            if journal.epochs != sorted(journal.epochs):
                self.blame("I6", run_id, f"epochs go back: {journal.epochs}")
        for client in self.clients:
            client.check()


def here() -> Process:
    """Return the process that has the turn."""
    world = knobs.WORLD
    assert world is not None
    assert world.process is not None
    return world.process


@contextmanager
def quiet() -> Iterator[None]:
    """Let schedules be lived inside: what dead processes leave is collected at set moments."""
    collecting, hook = gc.isenabled(), sys.unraisablehook
    gc.collect()
    gc.freeze()
    gc.disable()  # what a collection sets off would come at other moments each time
    sys.unraisablehook = lambda _: None  # coroutines of the dead complain when they are dropped
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        gc.unfreeze()
        sys.unraisablehook = hook
        if collecting:
            gc.enable()


def simulate(seed: int, *, sabotage: str = "", trace: bool = False) -> World:
    """Live one schedule, inside `quiet`; returns its world."""
    assert not gc.isenabled(), "use `with quiet():` around it"
    world = World(seed, sabotage=sabotage, trace=trace)
    world.run()
    if not world.violations:
        world.check_end()
    if seed % 32 == 0:
        gc.collect()
    return world
