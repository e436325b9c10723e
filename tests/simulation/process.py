"""One process of a world: its loop, its engine, its store's threads. It ends without a word."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from durable_endpoints import idempotency_key
from durable_endpoints.engine import functions
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.recovery import Recovery
from tests.simulation.disk import SimStore
from tests.simulation.loop import SimLoop

if TYPE_CHECKING:
    from tests.simulation.weather import End
    from tests.simulation.world import World


class Gone(BaseException):
    """The process has ended; whatever still runs of it must not go on."""


class SimClock:
    """The world's time: the monotonic one moves with every look, the wall clock may be wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._started = world.wall_ms(), world.now

    def due_ms(self) -> int:
        wall_ms, now = self._started
        return max(self.now_ms(), wall_ms + int((self._world.now - now) * 1000))

    def now_ms(self) -> int:
        return self._world.wall_ms()

    def monotonic_s(self) -> float:
        self._world.spend()
        return self._world.now


class Process:
    """A process that boots over the world's disk, and ends as `end` says."""

    def __init__(self, world: World, number: int, end: End) -> None:
        self.world = world
        self.number = number
        self.end = end
        self.dead = False
        self.paused = False
        self.succeeded = False
        self.booted = False
        self.turns = 0
        self.board: list[str] = []  # what all runs of a process can see
        self.left: dict[str, int] = {}
        self._attempts: Counter[tuple[str, str, int]] = Counter()
        self._working: set[tuple[str, str, int]] = set()
        self.loop = SimLoop(lambda: world.now, world.jitter, self._uncaught)
        self.clock = SimClock(world)
        self.store = SimStore(world.disk, self)
        self.engine = Engine(
            self.store,  # type: ignore[arg-type]
            strict=world.weather.strict,
            clock=self.clock,
            on_failure=self._leave,
            suspend_grace_s=world.weather.grace_s,
        )
        self.engine.drivers[functions.KIND] = lambda run, started, journal: functions.recover(
            self.engine, run, started, journal
        )

    # --- life

    def begin(self) -> None:
        """Boot."""
        self.loop.call_soon(self.spawn, self._boot())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something of nobody's run, and report what it dies of."""
        task = self.loop.create_task(work)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.dead:
            self.world.crashed(error)

    async def _boot(self) -> None:
        self.reach("boot.begin")
        await self.engine.open()
        Recovery(self.engine).start()
        self.booted = True
        self.reach("boot.done")
        self.attach()

    def attach(self) -> None:
        """Let the clients connect that are nowhere else."""
        for client in self.world.clients:
            if not client.done and (client.process is None or client.process.dead):
                client.process = self
                self.spawn(client.session(self))

    def _uncaught(self, told: dict[str, Any]) -> None:
        error = told.get("exception")
        if not isinstance(error, Gone):
            self.world.blame("LOOP", "?", f"{told['message']}: {error!r}")

    def _leave(self, reason: str) -> None:
        """Do what the engine does after a failed write: end, at once (I9)."""
        self.world.sometimes("the process leaves after a failed write")
        self.crash(f"leaves: {reason}")

    def die(self, how: str) -> None:
        """End; nothing of it runs any more."""
        if not self.dead:
            self.dead = True
            self.world.note(f"process {self.number} ends: {how}")
            self.loop.die()

    def crash(self, how: str) -> None:
        """End from inside."""
        self.die(how)
        raise Gone(how)

    def check_alive(self) -> None:
        """Raise if there is no such process any more."""
        if self.dead:
            raise Gone("long ago")

    def check_lease(self, name: str, args: Any) -> None:
        """End a process that has a successor, before it takes runs or begins some.

        Who may do that is the lease's matter, not the epochs'.
        """
        if self.succeeded and (
            name == "claim" or (name == "append" and any(f.opening is not None for f in args[0]))
        ):
            self.crash("its lease is over")

    def reach(self, point: str) -> None:
        """Note that a point is passed; end here if this is where the process is to end."""
        self.check_alive()
        end = self.end
        if point == self.world.sought and not self.succeeded:
            self.world.sought = ""
            self.world.sometimes(f"crash at {point}")
            self.crash(f"at {point}")
        if end.point == point:
            end.count -= 1
            if end.count <= 0:
                self.world.sometimes(f"crash at {point}")
                self.crash(f"at {point}")

    # --- what steps do

    @contextmanager
    def executing(self, label: str, of: str | None = None) -> Iterator[str]:
        """Execute a step's body: check that it may, count it, and name what it makes."""
        self.check_alive()
        world = self.world
        run_id, epoch = world.current(self)
        journal = world.disk.journals.get(run_id)
        for name in {label, of or label}:
            if journal is not None and name in journal.final and world.owns(self, run_id, epoch):
                world.blame("I2", run_id, f"{label} runs again, though {name} is durable")
        place = (run_id, label, epoch)
        if place in self._working:
            world.blame("I13", run_id, f"{label} is at work twice in epoch {epoch}")
        self._working.add(place)
        value = f"{label}={world.next_nonce()}"
        world.note(f"run {run_id[-4:]} executes {value}")
        try:
            yield value
        finally:
            self._working.discard(place)
        self.check_alive()

    @contextmanager
    def acting(self, label: str) -> Iterator[str]:
        """Execute an effect's body: its intent must be durable, its key always the same (I3)."""
        world, key = self.world, idempotency_key()
        run_id, _ = world.current(self)
        journal = world.disk.journals.get(run_id)
        if journal is None or label not in journal.intents:
            world.blame("I3", run_id, f"effect {label} begins, its intent is not durable")
        if world.effect_keys.setdefault((run_id, label), key) != key:
            world.blame("I3", run_id, f"effect {label} has another key than before")
        with self.executing(label) as value:
            world.acted[run_id, label] += 1
            yield value
            world.received[key] = value

    def count_attempt(self, label: str, most: int) -> int:
        """Count an attempt of a step with retries, as its journal and this process have it."""
        run_id, epoch = self.world.current(self)
        journal = self.world.disk.journals.get(run_id)
        before = 0 if journal is None else journal.attempts[label]
        if before >= most and self.world.owns(self, run_id, epoch):
            self.world.blame("I17", run_id, f"{label} is attempted after {before} failures")
        place = (run_id, label, epoch)
        self._attempts[place] = max(self._attempts[place], before) + 1
        return self._attempts[place]

    async def linger(self) -> None:
        """Take another while at every attempt."""
        for _ in range(self.world.chance.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        pause = self.world.pause()
        if pause:
            await asyncio.sleep(pause)
