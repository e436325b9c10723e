"""Those who begin runs, read them, cancel them: they outlive the processes, and compare."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING

from durable_endpoints.engine.functions import start
from durable_endpoints.engine.reader import Reader, event_at
from durable_endpoints.engine.recent import Event
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import (
    AlreadyAnswered,
    Fenced,
    Overloaded,
    RunEnded,
    RunNotFound,
    StoreError,
)
from durable_endpoints.records import Kind
from tests.simulation import ops, ops_waits, programs
from tests.simulation.disk import ENDED

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

# A run that takes so many processes with it dies of it, and has only to be revived once.
REVIVED = 7
REVIVALS_MAX = 3
OVER = ENDED - {"dead"}
# Programs are drawn until one has what makes the entries that are sought.
SEARCHES = 60
MADE_BY = {
    "reset": "stream restart", "rewind": "stream restart", "stream": "stream", "item": "stream",
    "stream_end": "stream", "patch": "patched", "value": "values", "timer": "sleep",
    "fired": "sleep", "wait": "wait", "signal": "wait", "received": "wait", "intent": "effect",
    "attempt": "unsteady step", "spawn": "child", "undoable": "undoable step",
    "step_failed": "failing step", "step": "step", "emit": "told step",
    "label": "label",
}  # fmt: skip
# What a client is told when it should come back.
AGAIN = (Fenced, Overloaded, StoreError)


class Client:
    """Someone outside. `session` is what goes on in the process that it is connected to.

    After anything that waits, `process` may be one that it has left.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.done = False
        self.process: Process | None = None  # that it is connected to
        self.poison = 0  # how often its run ends the process

    def leave(self) -> None:
        """Leave a process that is gone, or perhaps one that seems to be."""
        if self.process is not None and (self.process.dead or self.world.chance.random() < 0.5):
            self.process = None

    async def session(self, process: Process) -> None:
        """Do what is left to do, in this process."""
        while not self.done and self.process is process:
            try:
                await self.act(process)
            except AGAIN as error:
                self.world.sometimes(f"a client met {type(error).__name__}")
                await asyncio.sleep(self.world.chance.uniform(0, 0.05))
            except RuntimeError:
                if process.engine.is_open:
                    raise
                return  # it has drained, and its process is about to end

    async def know(self, starter: Starter) -> bool:
        """Wait until there is a run; False if there will be none."""
        wait_s = 0.001
        while not starter.run_id:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.2)
            if starter.done:
                self.done = True
                return False
        return True

    async def act(self, process: Process) -> None:
        """Do one thing; sets `done` when there is no more to do."""
        raise NotImplementedError

    def check(self) -> None:
        """Compare with the disk, when all is over."""


class Starter(Client):
    """Begins a run and waits for its result."""

    def __init__(self, world: World, chance: Random, seed: int) -> None:
        super().__init__(world)
        low = 3 if world.sought else 0
        self.seed, self.size = seed, int(2 ** chance.uniform(low, 5))
        self.poison = chance.choice((1, 2, REVIVED, 99)) if chance.random() < 0.04 else 0
        self.ends = chance.choice(programs.ENDS) if chance.random() < 0.14 else ""
        kind = world.sought.partition(".")[0]
        if kind == "retry" or world.sought == "client.retry":
            self.poison = REVIVED
        if kind in ("failed", "gave_up"):
            self.ends = "fails" if kind == "failed" else "gives up"
        for _ in range(SEARCHES * (kind in MADE_BY)):
            if MADE_BY[kind] in ops.kinds_of(programs.program(self.seed, self.size)):
                break
            self.seed = chance.randrange(1 << 30)
        self._at_s = chance.choice((0.0, 0.0, 0.01, 1.0)) * chance.random()
        self.run_id = ""
        self._tries = self._revived = 0

    @property
    def args(self) -> tuple[int, int, int, str]:
        """What its run is called with."""
        return self.seed, self.size, self.poison, self.ends

    def __str__(self) -> str:
        return f"starter of {self.run_id or 'nothing yet'}"

    async def act(self, process: Process) -> None:
        world = self.world
        if not self.run_id:
            await asyncio.sleep(max(0.0, 1000.0 + self._at_s - world.now))
            self._tries += 1
            if self.poison and self._tries > 3:
                self.done = True  # it takes the process before it is durable, every time
                return
            process.reach("client.start")
            run = await start(process.engine, programs.play, *self.args)
            if self.process is not process:
                return  # it has left, and begins anew elsewhere
            self.run_id = run.id
            world.known.append(run.id)
            world.note(f"run {run.id[-4:]} plays {self.args}")
            if not world.disk.status(run.id):
                world.blame("I7", run.id, "a client knows it, the disk does not")
            process.reach("client.started")
        live = await self.observe(process)
        while not live.ended:
            if live.fenced is not None:
                raise Fenced(live.fenced)
            await live.progress()
            if self.process is not process:
                return
        status = world.disk.status(self.run_id)
        died = live.record.status == "dead" and bool(world.disk.journals[self.run_id].deaths)
        if status != live.record.status and not died:
            world.blame("I1", self.run_id, f"shown as {live.record.status}, is {status}")
        revivable = self.poison == REVIVED or self.ends == "gives up"
        if status == "dead" and revivable and self._revived < REVIVALS_MAX:
            self._revived += 1
            world.mended.add(self.run_id)
            process.reach("client.retry")
            await process.engine.retry(live)
            world.sometimes("a dead run goes on")
            return
        self.done = True

    async def observe(self, process: Process) -> LiveRun:
        """Return the run as the process shows it."""
        try:
            return await process.engine.observe(self.run_id)
        except RunNotFound:
            self.world.blame("I7", self.run_id, "it was answered, and is not found")
            raise

    def check(self) -> None:
        if not self.run_id:
            return
        journal, status = self.world.disk.journals[self.run_id], self.world.disk.status(self.run_id)
        if status == "completed":
            result = json.loads(journal.entries[-1].payload)
            told, shown = _by_place(result["told"]), _by_place(journal.shown())
            if shown != told:
                self.world.blame("I5", self.run_id, f"emitted {told}, a reader has {shown}")
            for value in _values(result["out"]):
                label = value.partition("=")[0]
                if value not in journal.final.get(label, ""):
                    self.world.blame("I2", self.run_id, f"its result has {value}, not recorded")
        elif status == "dead" and not (self.poison or self.ends == "gives up"):
            self.world.blame("I17", self.run_id, "it is dead, and did no harm")
        elif status == "failed" and not (
            self.ends == "fails" or (self.ends == "gives up" and journal.undoable)
        ):
            self.world.blame("I2", self.run_id, f"it failed: {journal.entries[-1].payload!r}")
        elif status == "cancelled" and not journal.cancel:
            self.world.blame("I15", self.run_id, "it is cancelled, and nobody asked")
        if status in ("failed", "cancelled") and journal.undone() != journal.undoable[::-1]:
            self.world.blame(
                "I2", self.run_id, f"done {journal.undoable}, undone {journal.undone()}"
            )


class Watcher(Client):
    """Reads a run's events, leaves, comes back with its cursor."""

    def __init__(self, world: World, starter: Starter, chance: Random) -> None:
        super().__init__(world)
        self._starter = starter
        self._cut = chance.choice((0.0, 0.05, 0.5))
        self._slow_s = chance.choice((0.0, 0.0, 0.01, 3.0))
        self._events: list[Event] = []

    def __str__(self) -> str:
        return f"reader of {self._starter.run_id}, {len(self._events)} events"

    async def act(self, process: Process) -> None:
        world, starter = self.world, self._starter
        if not await self.know(starter):
            return
        run = await starter.observe(process)
        store = process.engine.store
        if self._events:
            last = await event_at(store, run, self._events[-1].offset)
            if self.process is not process:
                return
            if last is None or last.crc != self._events[-1].crc:
                world.blame("I5", run.id, f"its cursor {self._events[-1]} is now {last}")
        reader = Reader(store, run, len(self._events))
        while True:
            found = await reader.read(15.0)
            if self.process is not process:
                return
            if found is None:
                continue
            if not found:
                break
            for event in found:
                self._take(event)
            process.reach("client.event")
            if self._slow_s:
                await asyncio.sleep(self._slow_s * world.chance.random())
            if world.chance.random() < self._cut:
                world.sometimes("a reader leaves and comes back")
                return
        self._check_end(run)
        self.done = True

    def _check_end(self, run: LiveRun) -> None:
        """Compare what was told with the disk; somebody may have taken up a dead run since."""
        journal, status = self.world.disk.journals[run.id], self.world.disk.status(run.id)
        told, wanted = len(self._events), {len(journal.events)}
        if run.record.status == "dead" != status and journal.deaths:
            status, wanted = "dead", journal.deaths
        if told not in wanted or status not in ENDED:
            self.world.blame("I5", run.id, f"the end was told after {told} events of "
                             f"{wanted}, status {status}")  # fmt: skip

    def _take(self, event: Event) -> None:
        """Take an event; it must be what the disk has, now (I1, I4, I5)."""
        run_id = self._starter.run_id
        if event.offset != len(self._events):
            self.world.blame("I4", run_id, f"{event} comes after {len(self._events)} events")
        self._events.append(event)
        known = self.world.disk.journals[run_id].events
        if event.offset >= len(known):
            self.world.blame("I1", run_id, f"{event} was shown and is not durable")
        elif known[event.offset] != (event.kind, event.payload, event.crc):
            self.world.blame("I5", run_id, f"{event} was shown, the log has {known[event.offset]}")
        if event.kind == Kind.REWIND:
            self.world.sometimes("a reader is rewound")


class Canceller(Client):
    """Cancels a run at some moment; once that is answered it must stay so."""

    def __init__(self, world: World, starter: Starter, at_s: float) -> None:
        super().__init__(world)
        self._starter = starter
        self._at_s = at_s

    def __str__(self) -> str:
        return f"canceller of {self._starter.run_id}"

    async def act(self, process: Process) -> None:
        world, starter = self.world, self._starter
        if not await self.know(starter):
            return
        await asyncio.sleep(self._at_s * world.chance.random())
        run = await starter.observe(process)
        process.reach("client.cancel")
        await process.engine.cancel(run)
        journal = world.disk.journals[run.id]
        if not journal.cancel and world.disk.status(run.id) not in ENDED:
            world.blame("I15", run.id, "cancel was answered, and neither it nor an end is durable")
        process.reach("client.cancelled")
        self.done = True


class Signaller(Client):
    """Sends what a program waits for, sometimes twice, until it is answered."""

    def __init__(self, world: World, starter: Starter, name: str, at_s: float) -> None:
        super().__init__(world)
        self._starter = starter
        self._name = name
        self._at_s = at_s
        self._left = 2 if at_s > 0 else 1

    def __str__(self) -> str:
        return f"signaller of {self._name} to {self._starter.run_id}"

    async def act(self, process: Process) -> None:
        world, starter = self.world, self._starter
        if not await self.know(starter):
            return
        await asyncio.sleep(self._at_s * world.chance.random())
        run = await starter.observe(process)
        signal_id = f"signal {self._name}"
        data = {"to": self._name, "n": len(self._name)}
        process.reach("client.signal")
        try:
            await process.engine.signal(run, self._name, data, signal_id=signal_id)
        except (RunEnded, AlreadyAnswered) as error:
            world.sometimes(f"a signaller met {type(error).__name__}")
            # Who begins a run may revive a dead one, which then waits for its signal again.
            revivable = isinstance(error, RunEnded) and not starter.done
            self.done = not revivable or world.disk.status(run.id) in OVER
            if not self.done:
                await asyncio.sleep(0.5)
            return
        if signal_id not in world.disk.journals[run.id].signals:
            world.blame("I16", run.id, f"{signal_id} was answered, and is not durable")
        process.reach("client.signalled")
        if self.process is process:
            self._left -= 1
            self.done = self._left == 0


def draw_clients(chance: Random, world: World) -> list[Client]:
    """Draw who there is."""
    found: list[Client] = []
    shared = chance.randrange(1 << 30)
    for _ in range(chance.choice((1, 1, 2, 3, 4))):
        seed = shared if chance.random() < 0.2 else chance.randrange(1 << 30)
        starter = Starter(world, chance, seed)
        found.append(starter)
        found += [Watcher(world, starter, chance) for _ in range(chance.choice((0, 1, 1, 2)))]
        names = ops_waits.signals_of(programs.program(starter.seed, starter.size))
        delays = [chance.choice((0.0, 0.01, 0.5, 5.0)) for _ in names]
        found += [Signaller(world, starter, name, at_s)
                  for name, at_s in zip(names, delays, strict=True)]  # fmt: skip
        wanted = world.sought.startswith(("cancel", "client.cancel"))
        if wanted or chance.random() < 0.12:
            found.append(Canceller(world, starter, chance.choice((0.0, 0.005, 0.1, 1.0))))
    return found


def _by_place(texts: list[str]) -> dict[str, list[str]]:
    """Return what each place of a program has told, in order; concurrent ones go in any order."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        found[text.partition(" ")[0]].append(text)
    return found


def _values(out: object) -> list[str]:
    """Return the values of steps in a result."""
    if isinstance(out, list):
        return [value for part in out for value in _values(part)]
    return [out] if isinstance(out, str) and "=" in out else []
