"""Suspended runs come back: when a time has come, a signal arrives, or a child is at its end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import orjson

from durable_endpoints.clock import SettableClock
from durable_endpoints.engine.life import expire
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.wait import Receipt, Signal
from durable_endpoints.engine.waits import Waits
from durable_endpoints.errors import (
    Corrupt,
    Fenced,
    NotDurable,
    Overloaded,
    RunDeleted,
    RunEnded,
    RunNotFound,
)
from durable_endpoints.limits import DUE_INTERVAL_S, LIST_ROWS_MAX, RECOVERIES_PARALLEL_MAX, WAKE_S
from durable_endpoints.quotas import Quotas
from durable_endpoints.records import RunRecord
from durable_endpoints.states import TERMINAL
from durable_endpoints.stores.protocol import Query

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

logger = logging.getLogger("durable_endpoints")
# Sets of due runs taken up side by side.
_SETS_MAX: Final = 8
Take = Callable[[Sequence[RunRecord]], Awaitable[None]]


class _Elsewhere(Exception):
    """Another node drives the run, or is about to."""


class Waking:
    """What runs ask of the engine while they wait, and who brings them back."""

    def __init__(self, engine: Engine, suspend_grace_s: float) -> None:
        self.suspend_grace_s = suspend_grace_s
        self.quotas = Quotas(engine.clock)
        self.take: Take | None = None  # claims runs and drives them on; set by the recovery
        self.drive: Callable[[LiveRun], object] | None = None  # drives a run on that was claimed
        self.sign_path: Callable[[str, str, int | None], str] | None = None
        self._engine = engine
        self._held: Counter[str] = Counter()
        self._waking = 0  # sets of runs that are being taken up
        self._hint: asyncio.Event | None = None
        self._watching: set[asyncio.AbstractEventLoop] = set()
        if isinstance(engine.clock, SettableClock):
            engine.clock.attach(engine)

    # --- what runs ask

    def holds(self, run: LiveRun) -> bool:
        """Say whether somebody needs the run in memory."""
        return self._held[run.id] > 0 if self._held else False

    def may_act(self) -> bool:
        """Say whether this node may begin what a crash cannot undo (I3)."""
        remote = self._engine.remote
        return remote is None or remote.nodes.holds_lease

    async def settled(self, run: LiveRun) -> None:
        """Wait for as long as another node may have a run that this one drives (I3)."""
        remote = self._engine.remote
        if remote is not None and remote.edge is not None:
            await remote.edge.settled(run.id)

    def rested(self, run: LiveRun) -> None:
        """Note that a run is durably suspended."""
        self._engine.forget(run)
        self._engine.conflicts.rested(run)
        if run.record.wake_at_ms is not None:
            left_s = (run.record.wake_at_ms - self._engine.clock.due_ms()) / 1000
            if left_s < DUE_INTERVAL_S:
                run.log.loop.call_later(max(left_s, 0), self.hint)

    def lost(self, run: LiveRun) -> None:
        """Note that a run was fenced before its suspension was known to be durable."""
        self._engine.forget(run)

    def child_awaited(self, run: LiveRun, child_id: str) -> None:
        """Answer the run's wait for a child that may have ended already."""
        child = self._engine.runs.get(child_id)
        if child is None or child.over:
            self._held[run.id] += 1
            self._engine.spawn(self._tell(run, child_id))

    def child_ended(self, child: LiveRun) -> None:
        """Note that a run which another one waits for is at its end."""
        parent = self._engine.runs.get(child.record.parent or "")
        if parent is None:
            self.hint()
            if self._engine.remote is not None and child.record.parent is not None:
                self._engine.remote.child_ended(child.record.parent, child.id)
        else:
            self._held[parent.id] += 1
            self._engine.spawn(self._tell(parent, child.id))

    async def _tell(self, parent: LiveRun, child_id: str) -> None:
        """Tell a parent, which is held meanwhile, how its child ended."""
        try:
            outcome = await self._outcome_of(parent, child_id)
            if outcome is None:
                return
            if parent.resting:
                await self._rouse(parent)
            elif parent.fenced is None and not parent.over:
                parent.waits.child_ended(child_id, orjson.dumps(outcome))
        finally:
            self._let_go(parent.id)

    async def _rouse(self, run: LiveRun) -> None:
        """Bring a run back that was just being suspended."""
        while run.resting and self._engine.runs.get(run.id) is run:
            await run.progress()
        record = await self._engine.store.get(run.id)
        if record is not None and record.status == "suspended" and self.take is not None:
            await self.take([record])

    def _let_go(self, run_id: str) -> None:
        self._held[run_id] -= 1
        if self._held[run_id] <= 0:
            del self._held[run_id]

    async def _outcome_of(self, parent: LiveRun, run_id: str) -> dict[str, Any] | None:
        """Return how a child ended: `status`, `error`, `result`; None while it has not."""
        store = self._engine.store
        record = await store.get(run_id)
        if record is None and await store.was_deleted(run_id, parent.record.principal):
            return {"status": "deleted", "error": None, "result": None}
        if record is None or record.status not in TERMINAL:
            return None
        if record.status != "completed":
            return {"status": record.status, "error": record.error, "result": None}
        end = record.last_seq
        try:
            last = (await read_journal(store, run_id, seq=end, last=end))[-1]
        except RunDeleted:
            return await self._outcome_of(parent, run_id)
        except Corrupt as error:  # no later look finds more
            logger.exception("run %s is damaged: what it returned is lost", run_id)
            return {"status": "failed", "error": f"damaged: {error}", "result": None}
        result = orjson.loads(last.payload) if last.payload else None
        return {"status": "completed", "error": None, "result": result}

    def turn_awaited(self, run: LiveRun) -> None:
        """Tell a run when it is the first of its concurrency key."""
        self._held[run.id] += 1
        self._engine.spawn(self._check_turn(run))

    async def _check_turn(self, run: LiveRun) -> None:
        try:
            await self._engine.conflicts.check_turn(run)
        finally:
            self._let_go(run.id)

    def key_freed(self, run: LiveRun) -> None:
        """Note that a run which held a concurrency key is at its end."""
        self._engine.spawn(self._engine.conflicts.pass_on(run))

    async def begin_child(
        self, run: LiveRun, child_id: str, function: Callable[..., Any],
        args: tuple[Any, ...], kwargs: dict[str, Any], *, fresh: bool = False,
    ) -> None:  # fmt: skip
        """Begin a child run, unless there is one of this id; of a fresh one there is none."""
        from durable_endpoints.engine.functions import begin_call

        engine = self._engine
        ours = engine.runs.get(child_id)
        # One that was fenced before it was durable may linger: it never was.
        if ours is not None and ours.gone is None:
            return
        record = run.record
        if not fresh and (
            await engine.store.get(child_id) is not None
            or await engine.store.was_deleted(child_id, record.principal)
        ):
            return
        begin_call(
            engine, function, args, kwargs, run_id=child_id, parent=run.id,
            principal=record.principal,
        )  # fmt: skip

    async def cancel_child(self, run: LiveRun, child_id: str) -> None:
        """Cancel a child run, unless it is at its end."""
        child = self._engine.runs.get(child_id)
        with suppress(RunNotFound):
            if child is None:
                child = await self._engine.observe(child_id, run.record.principal)
            await self._engine.cancel(child)

    def approval_path(self, run_id: str, ident: str, until_ms: int | None) -> str:
        """Return the signed path under which a person decides."""
        if self.sign_path is None:
            raise NotDurable("approvals need DurableMiddleware, which serves their links")
        return self.sign_path(run_id, ident, until_ms)

    async def send(self, run_id: str, signal: Signal) -> None:
        """Give another run a signal; returns when that is durable."""
        record = await self._engine.store.get(run_id)
        if record is None:
            raise RunNotFound(run_id)
        await self.signal(await self._engine.observe(run_id, record.principal), signal)

    # --- times

    @property
    def busy(self) -> bool:
        """Whether runs are being taken up, or asked for."""
        return bool(self._held or self._waking)

    def clock_was_set(self) -> None:
        """Look again at everything that waits for a time; from any thread."""
        loops = {run.log.loop for run in list(self._engine.runs.values())} | self._watching
        for loop in loops:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._look_again, loop)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        for run in list(self._engine.runs.values()):
            if run.log.loop is loop:
                run.waits.look_again()
        if loop in self._watching:
            self.hint()

    def hint(self) -> None:
        """Look for runs that are due now."""
        if self._hint is not None:
            self._hint.set()

    async def watch(self) -> None:
        """Bring back runs whose time has come, until the engine leaves."""
        engine = self._engine
        self._hint = asyncio.Event()
        self._watching = {asyncio.get_running_loop()}
        while not engine.leaving:
            try:
                full = await self.wake_due()
            except Exception:
                logger.exception("the look for runs that are due failed; it goes on")
                full = False
            if not full:
                with suppress(TimeoutError):
                    async with asyncio.timeout(DUE_INTERVAL_S):
                        await self._hint.wait()
            self._hint.clear()

    async def wake_due(self) -> bool:
        """Wake the runs that are due; True if there may be more."""
        engine = self._engine
        due = Query(("suspended",), due_ms=engine.clock.due_ms(), limit=LIST_ROWS_MAX)
        rows = [row for row in await engine.store.list(due) if row.run_id not in engine.runs]
        for at in range(0, len(rows), RECOVERIES_PARALLEL_MAX):
            if self.take is None or self._waking >= _SETS_MAX:
                return False
            engine.spawn(self._take_set(rows[at : at + RECOVERIES_PARALLEL_MAX]))
        return len(rows) >= LIST_ROWS_MAX

    async def _take_set(self, rows: Sequence[RunRecord]) -> None:
        """Take some runs up; one that is slow to come back holds the next set up no further."""
        assert self.take is not None
        self._waking += 1
        try:
            await self.take(rows)
        finally:
            self._waking -= 1

    # --- signals

    async def signal(self, run: LiveRun, signal: Signal) -> Receipt:
        """Give a run a signal; returns when it is durable.

        Raises: RunEnded, AlreadyAnswered, SignalRefused, Overloaded, RunNotFound, Corrupt.
        """
        try:
            return await self._give(run, signal)
        except RunEnded:
            past = Waits(run)
            last = run.record.last_seq
            past.restore(await read_journal(self._engine.store, run.id, last=last))
            known = past.look_back(signal)
            if known is None:
                raise
            return known

    async def _give(self, run: LiveRun, signal: Signal) -> Receipt:
        remote = self._engine.remote
        while True:
            if remote is not None and run.id not in self._engine.runs:
                receipt = await remote.signal(run, signal)
                if receipt is not None:
                    return receipt
            try:
                async with self.held(run) as live:
                    receipt = live.waits.receive(signal)
                    await live.durable(receipt.seq)
                    return receipt
            except (_Elsewhere, Fenced):
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def held(self, run: LiveRun) -> AsyncIterator[LiveRun]:
        """Have a run in memory, at its waits; wake it if it is suspended.

        Raises: RunEnded, RunNotFound; Overloaded if it does not come back in time.
        """
        self._held[run.id] += 1
        try:
            yield await self._awake(run)
        finally:
            self._let_go(run.id)

    async def _awake(self, run: LiveRun) -> LiveRun:
        engine = self._engine
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAKE_S
        while True:
            live = engine.runs.get(run.id)
            if live is not None and live.fenced is None:
                if live.over:
                    await live.durable(live.terminal_seq)
                    raise RunEnded(run.id, live.record.status)
                if live.caught_up and not live.waits.expected:
                    return live
                if loop.time() > until_s:  # something runs again, and will come to its wait
                    return live
                await self._moved(live)
                continue
            record = await engine.store.get(run.id)
            if record is None:
                raise RunNotFound(run.id)
            if record.status not in ("running", "suspended"):
                raise RunEnded(run.id, record.status)
            if engine.remote is not None and record.status == "running" and live is None:
                raise _Elsewhere
            if loop.time() > until_s or self.take is None or engine.leaving:
                raise Overloaded("the run is being taken up again; try again shortly")
            if record.status == "suspended" and live is None:
                await self.take([record])
            else:
                await asyncio.sleep(0.01)

    @staticmethod
    async def _moved(live: LiveRun) -> None:
        waiter = live.progress()
        timer = live.log.loop.call_later(0.05, expire, waiter)
        await waiter
        timer.cancel()
