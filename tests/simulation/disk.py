"""What survives a process: a memory store, and beside it what its journals say, checked at each
commit. A `SimStore` is one process's way to it: slow, and gone with the process.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from durable_endpoints.errors import StoreFailed
from durable_endpoints.frames import unpack
from durable_endpoints.records import Frame
from durable_endpoints.stores.memory import MemoryStore
from tests.simulation.journals import Journal

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

READS = frozenset({"read", "get", "find", "list", "was_deleted", "waits"})
# Stores that do not keep their promises: what the simulation must notice.
SABOTAGES = ("answers early", "half batches")
ENDED = frozenset({"completed", "failed", "cancelled", "dead"})


class Disk:
    """The store that all processes of a world share, and its journals read anew."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = MemoryStore()
        self.journals: dict[str, Journal] = {}

    def status(self, run_id: str) -> str:
        """Return a run's durable status; "" if there is no such run."""
        row = self.store._runs.get(run_id)
        return row.status if row is not None else ""

    def unfinished(self) -> list[str]:
        """Return the runs that are at no end."""
        return [row.run_id for row in self.store._runs.values() if row.status not in ENDED]

    def _at_work(self) -> int:
        process = self.world.process
        assert process is not None
        return process.number

    def committed(self, batch: Sequence[Frame], fenced: frozenset[str]) -> None:
        """Take over what a batch made durable."""
        self.world.note(f"commit {[(f.run_id[-4:], f.first_seq, f.last_seq) for f in batch]}")
        if fenced:
            self.world.sometimes("a commit is fenced")
        written = [frame for frame in batch if frame.run_id not in fenced]
        for frame in written:
            if frame.opening is not None:
                if frame.run_id in self.journals:
                    self.world.blame("I7", frame.run_id, "it was begun twice")
                self.journals[frame.run_id] = Journal(self.world, frame.run_id, self._at_work())
            self.journals[frame.run_id].add_frame(frame)
            if frame.status == "dead":
                self.world.sometimes("a run is parked as dead")
            elif frame.status == "suspended":
                self.world.sometimes("a run is suspended")
        for frame in written:
            journal = self.journals[frame.run_id]
            self._check_peeked(journal)
            if self.store._runs[frame.run_id].labels != journal.labels:
                journal.blame("I8", "its row has other labels than its journal")

    def _check_peeked(self, journal: Journal) -> None:
        """What a step saw of another run in memory must be durable with it (I8)."""
        for seen in journal.peeked:
            place, _, value = seen.partition("!")
            other, _, label = place.partition("/")
            known = self.journals.get(other)
            if known is None or known.final.get(label) != json.dumps(value):
                journal.blame("I8", f"it is durable that it saw {seen}, which is not")
        journal.peeked.clear()

    def claimed(self, rows: Sequence[Any]) -> None:
        """Note new epochs."""
        self.world.note(f"claim {[row.run_id[-4:] for row in rows]}")
        for row in rows:
            journal = self.journals[row.run_id]
            if row.epoch <= journal.epoch:
                journal.blame("I6", f"epoch {row.epoch} after {journal.epoch}")
            journal.epoch, journal.owner = row.epoch, self._at_work()
            if row.attempts > 1:
                self.world.sometimes("a suspect is taken up")
            if journal.cancel:
                self.world.sometimes("a cancelled run is taken up")


class SimStore:
    """One process's store. Every call takes a while; writes and reads have a thread each."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self.failed: str | None = None
        self.nodes = None
        self._disk = disk
        self._process = process
        self._free_at = {True: 0.0, False: 0.0}  # when the writing, the reading thread is idle

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not hasattr(MemoryStore, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    async def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        process, world = self._process, self._process.world
        process.check_alive()
        writes = name not in READS
        if writes and self.failed is not None:
            raise StoreFailed(self.failed)
        process.check_lease(name, args)
        kinds = _kinds(args[0]) if name == "append" else ()
        if name not in READS and args != ([],):
            process.reach(f"{name}.begin")
        for kind in kinds:
            process.reach(f"{kind}.begin")
        loop = process.loop
        answer = loop.create_future()
        start = max(loop.time(), self._free_at[writes]) + world.latency(writes=writes)
        done = start + world.latency(writes=writes)
        self._free_at[writes] = done
        if world.sabotage == "answers early" and name == "append":
            loop.call_soon(self._answer, name, answer, frozenset())
        # A cancelled caller does not stop the thread that works for it.
        loop.call_at(start, self._perform, name, args, kwargs, kinds, answer, done)
        return await answer

    def _perform(
        self, name: str, args: Any, kwargs: Any, kinds: Sequence[str],
        answer: asyncio.Future[Any], done: float,
    ) -> None:  # fmt: skip
        process, world = self._process, self._process.world
        writes = name not in READS
        process.check_lease(name, args)
        fails = world.fails(process, name)
        result: Any = None
        if writes and self.failed is not None:
            result = StoreFailed(self.failed)
        elif fails != "not done":
            result = self._apply(name, args, kwargs)
            if writes:
                process.reach(f"{name}.applied")
                for kind in kinds:
                    process.reach(f"{kind}.applied")
        if fails is not None:
            reason = f"{name} failed ({fails})"
            if writes:
                self.failed = self.failed or reason
            result = StoreFailed(reason)
        process.loop.call_at(done, self._answer, name, answer, result)

    def _apply(self, name: str, args: Any, kwargs: Any) -> Any:
        disk = self._disk
        if disk.world.sabotage == "half batches" and name == "append" and len(args[0]) > 1:
            args = (args[0][:-1],)
        work = getattr(disk.store, name)(*args, **kwargs)
        try:
            work.send(None)
        except StopIteration as end:
            result = end.value
        else:
            raise AssertionError(f"the memory store waited in {name}")
        if name == "append":
            disk.committed(args[0], result)
        elif name == "claim":
            disk.claimed(result)
        return result

    def _answer(self, name: str, answer: asyncio.Future[Any], result: Any) -> None:
        if name not in READS:
            self._process.reach(f"{name}.answered")
        else:
            self._process.reach("read.answered")
        if answer.done():
            return
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)


def _kinds(batch: Sequence[Frame]) -> list[str]:
    found: dict[str, None] = defaultdict()
    for frame in batch:
        if frame.entries:
            for entry in unpack(frame.data, frame.first_seq):
                found[entry.kind.name.lower()] = None
    return list(found)
