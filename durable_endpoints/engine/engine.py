"""The engine: owns the log and the runs in memory, and starts, finds, cancels and drains them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.engine.log import Log, leave
from durable_endpoints.engine.reader import read_journal, restore
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import install_task_factory
from durable_endpoints.errors import Corrupt, Overloaded, RunDeleted, RunNotFound
from durable_endpoints.ids import RUN_ID, new_run_id
from durable_endpoints.journal import Journal
from durable_endpoints.limits import DRAIN_S, LIST_ROWS_MAX, RUNS_LIVE_MAX
from durable_endpoints.records import Entry, Kind, RunRecord
from durable_endpoints.states import ENDED, TERMINAL
from durable_endpoints.stores.protocol import Query, Store

logger = logging.getLogger("durable_endpoints")

Driver = Callable[[LiveRun, Entry, Journal], Awaitable[None]]


class Engine:
    """Runs on one store. One engine a process; `open` it inside the event loop."""

    def __init__(
        self,
        store: Store,
        *,
        strict: bool = False,
        clock: Clock | None = None,
        on_failure: Callable[[str], None] = leave,
    ) -> None:
        self.store = store
        self.strict = strict
        self.clock: Clock = clock or SystemClock()
        self.runs: dict[str, LiveRun] = {}
        self.drivers: dict[str, Driver] = {}
        self.draining = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self._log: Log | None = None
        # Unfinished runs that somebody reads and nobody here drives (yet).
        self._idle: WeakValueDictionary[str, LiveRun] = WeakValueDictionary()
        self._on_failure = on_failure
        self._keys: dict[tuple[str | None, str, str], asyncio.Future[str | None]] = {}
        self._loading: dict[str, asyncio.Task[LiveRun]] = {}

    @property
    def log(self) -> Log:
        """The log of the open engine."""
        if self._log is None:
            raise RuntimeError("the engine is not open: `await engine.open()` first")
        return self._log

    @property
    def is_open(self) -> bool:
        """Whether `open` has been called and `close` has not."""
        return self._log is not None

    async def open(self) -> None:
        """Open the store and begin to take runs.

        Raises: StoreRefused, whose message says what to do.
        """
        await self.store.open()
        install_task_factory(asyncio.get_running_loop())
        self._log = Log(self.store, self.clock, self._on_failure)
        self.draining = False

    # --- runs

    def begin(
        self, name: str, *, version: str, args: bytes, payload: bytes,
        principal: str | None = None, key: str | None = None, fingerprint: str | None = None,
    ) -> LiveRun:  # fmt: skip
        """Begin a run: append its first entry. It is durable only with the log's next commit.

        Raises: Overloaded while draining, or with too many runs alive.
        """
        self.check_room()
        now_ms = self.clock.now_ms()
        record = RunRecord(
            new_run_id(now_ms), name, "running", now_ms, now_ms, 1, -1, 0, 1, -1, version,
            principal, key, fingerprint,
        )  # fmt: skip
        run = LiveRun(self.log, record, opening=True)
        run.strict = self.strict
        self.runs[record.run_id] = run
        run.append(Kind.STARTED, b"", payload, args=args)
        return run

    def check_room(self) -> None:
        """Raise Overloaded if no further run can be taken."""
        if self.draining:
            raise Overloaded("the server is being stopped; try again shortly")
        if len(self.runs) >= RUNS_LIVE_MAX:
            raise Overloaded(f"{RUNS_LIVE_MAX:,} runs are at work; try again shortly")

    def forget(self, run: LiveRun) -> None:
        """Drive a run no longer; whoever still reads it keeps it, and finds it when it goes on."""
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
            if not run.ended:
                self._idle[run.id] = run

    def adopt(self, record: RunRecord) -> LiveRun:
        """Take charge of a run that this process has claimed."""
        run = self._idle.pop(record.run_id, None)
        if run is None:
            run = LiveRun(self.log, record, opening=False)
        run.take_over(record)
        run.strict = self.strict
        self.runs[record.run_id] = run
        return run

    async def reserve(self, principal: str | None, name: str, key: str) -> str | None:
        """Return the run that has this idempotency key, or reserve the key (I7).

        After None the caller must call `settle_key`.
        """
        place = (principal, name, key)
        while True:
            waiting = self._keys.get(place)
            if waiting is None:
                break
            found = await asyncio.shield(waiting)
            if found is not None:
                return found
        self._keys[place] = asyncio.get_running_loop().create_future()
        record = None
        try:
            record = await self.store.find(principal, name, key)
        except BaseException:
            self.settle_key(principal, name, key, None)
            raise
        if record is not None:
            self.settle_key(principal, name, key, record.run_id)
            return record.run_id
        return None

    def settle_key(self, principal: str | None, name: str, key: str, run_id: str | None) -> None:
        """Say which run took a reserved key; None if none did."""
        waiting = self._keys.pop((principal, name, key), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(run_id)

    async def observe(self, run_id: str, principal: str | None = None) -> LiveRun:
        """Return a run for reading, from memory or from the store.

        Raises: RunNotFound if there is none or it is another principal's (I18); RunDeleted.
        """
        run = self.runs.get(run_id) or self._idle.get(run_id)
        if run is None and RUN_ID.fullmatch(run_id):
            loading = self._loading.get(run_id)
            if loading is None:
                loading = asyncio.get_running_loop().create_task(self._load(run_id))
                self._loading[run_id] = loading
                loading.add_done_callback(lambda _: self._loading.pop(run_id, None))
            run = await asyncio.shield(loading)
        if run is None or run.record.principal != principal or run.durable_seq < 0:
            raise RunNotFound(run_id)
        return run

    async def _load(self, run_id: str) -> LiveRun:
        record = await self.store.get(run_id)
        if record is None:
            if await self.store.was_deleted(run_id):
                raise RunDeleted(run_id)
            raise RunNotFound(run_id)
        run = LiveRun(self.log, record, opening=False)
        try:
            restore(run, await read_journal(self.store, run_id))
        except Corrupt as error:
            run.error = str(error)
            run.fenced = f"damaged: {error}"
        known = self.runs.get(run_id) or self._idle.get(run_id)
        if known is not None:  # somebody was faster
            return known
        if not run.ended and run.fenced is None:
            self._idle[run_id] = run
        if record.status == "completed":
            run.body_end_seq = max(run.body_end_seq, 0)
        return run

    async def cancel(self, run: LiveRun) -> None:
        """Ask a run to stop; returns when that is durable. Its partial output stays."""
        if run.over or run.ended:
            return
        if run.id not in self.runs:  # parked: nobody drives it
            await self._cancel_parked(run)
            return
        if not run.cancelling:
            seq = run.append(Kind.CANCEL)
            run.cancelling = True
            if run.task is not None:
                run.task.cancel("the run was cancelled")
            await run.durable(seq)

    async def _cancel_parked(self, run: LiveRun) -> None:
        record = await self.store.claim(run.id, self.clock.now_ms())
        if record is None:
            return
        parked = self.adopt(record)
        try:
            parked.append(Kind.CANCEL)
            await parked.durable(parked.end(Kind.CANCELLED, "cancelled", None))
        finally:
            self.forget(parked)

    async def delete(self, run: LiveRun) -> bool:
        """Remove an ended run for good (I21); False while it is unfinished."""
        if run.record.status not in ENDED:
            return False
        self.forget(run)
        await self.store.delete(run.id)
        return True

    async def list(self, query: Query) -> list[RunRecord]:
        """Return runs as the store has them, newest first."""
        return await self.store.list(query)

    async def unfinished(self) -> AsyncIterator[RunRecord]:
        """Yield running runs of which nobody here has charge."""
        before = None
        while True:
            page = Query(statuses=("running",), before=before, limit=LIST_ROWS_MAX)
            rows = await self.store.list(page)
            for record in rows:
                if record.run_id not in self.runs:
                    yield record
            if len(rows) < LIST_ROWS_MAX:
                return
            before = rows[-1].run_id

    # --- leaving

    async def drain(self, grace_s: float = DRAIN_S) -> None:
        """Stop in good order (I22): no new runs, a grace for those at work, then leave the rest.

        What is left is as safe as after a kill: the next process goes on with it.
        """
        if self.draining or self._log is None:
            return
        self.draining = True
        working = [run.task for run in self.runs.values() if run.task is not None]
        if working and grace_s > 0:
            await asyncio.wait(working, timeout=grace_s)
        left = [run for run in self.runs.values() if run.record.status not in TERMINAL]
        await self.log.flush()
        for run in [*left, *self._idle.values()]:
            run.fence("the server is being stopped")
        tasks = [run.task for run in left if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s + 1)
        if self.log.failed is None and left:
            await self.store.release([run.id for run in left])
            logger.info("left %d runs to the next process", len(left))

    async def close(self) -> None:
        """Drain without a grace, write what is left, let the store go."""
        if self._log is None:
            return
        await self.drain(0)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.log.flush()
        self._log = None
        self.runs.clear()
        await self.store.close()
