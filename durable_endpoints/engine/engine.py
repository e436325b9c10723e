"""The engine: owns the log and the runs in memory, and starts, finds, cancels and drains them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.engine import steering
from durable_endpoints.engine.conflicts import Conflicts
from durable_endpoints.engine.keys import Keys
from durable_endpoints.engine.log import Log, leave
from durable_endpoints.engine.observing import Observer
from durable_endpoints.engine.reader import stored_run
from durable_endpoints.engine.remote import Remote
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import install_task_factory
from durable_endpoints.engine.wait import LISTED, Receipt, Signal, encode_data
from durable_endpoints.engine.waking import Waking
from durable_endpoints.errors import Overloaded, RunNotFound, StoreFailed
from durable_endpoints.failures import plain
from durable_endpoints.ids import RUN_ID, new_run_id
from durable_endpoints.journal import Journal
from durable_endpoints.limits import DRAIN_S, LIST_ROWS_MAX, RUNS_LIVE_MAX, SUSPEND_GRACE_S
from durable_endpoints.records import Entry, Kind, RunRecord
from durable_endpoints.states import ENDED, TERMINAL
from durable_endpoints.stores.protocol import PATIENCE_S, Query, Store

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
        suspend_grace_s: float = SUSPEND_GRACE_S,
    ) -> None:
        self.store = store
        self.strict = strict
        self.clock: Clock = clock or SystemClock()
        self.runs: dict[str, LiveRun] = {}
        self.drivers: dict[str, Driver] = {}
        self.observer: Observer | None = None  # told from the opening on
        self.draining = False  # no new runs
        self.leaving = False  # the process was told to end
        self._drained: asyncio.Task[None] | None = None
        self._drain_until_s = 0.0
        self._hurry: asyncio.Event | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self._log: Log | None = None
        self._logs: WeakKeyDictionary[asyncio.AbstractEventLoop, Log] = WeakKeyDictionary()
        # Unfinished runs that somebody reads and nobody here drives (yet).
        self.idle: WeakValueDictionary[str, LiveRun] = WeakValueDictionary()
        self.waking = Waking(self, suspend_grace_s)
        self.conflicts = Conflicts(self)
        self.remote: Remote | None = None  # the other nodes, on a store that has some
        self.orphans = asyncio.Event()  # runs may have been left by another node
        self._on_failure = on_failure
        self.keys = Keys(store)
        self.claiming: set[str] = set()
        self._loads: dict[str, set[object]] = {}  # of runs that have not changed hands since
        self._loading: dict[tuple[str, str | None], asyncio.Task[LiveRun]] = {}

    @property
    def log(self) -> Log:
        """The log of the open engine, for the running event loop.

        There is one loop, but in tests: Starlette's TestClient may use one a request.
        """
        log = self._log
        if log is None:
            raise RuntimeError("the engine is not open: `await engine.open()` first")
        loop = asyncio.get_running_loop()
        if log.loop is not loop:
            log = self._logs.get(loop) or self._open_log(loop)
        return log

    def _open_log(self, loop: asyncio.AbstractEventLoop) -> Log:
        install_task_factory(loop)
        self._logs[loop] = log = Log(self.store, self.clock, self.waking, self._on_failure)
        log.observer = self.observer
        for run in list(self.runs.values()):
            if run.log.loop.is_closed():  # nobody can drive it any more
                del self.runs[run.id]
        return log

    @property
    def is_open(self) -> bool:
        """Whether `open` has been called and `close` has not."""
        return self._log is not None

    async def open(self) -> None:
        """Open the store and begin to take runs.

        Raises: StoreRefused, whose message says what to do. Leaves after a failed write (I9).
        """
        try:
            await self.store.open()
        except StoreFailed as error:
            self._on_failure(str(error))
            raise
        self._log = self._open_log(asyncio.get_running_loop())
        self.draining = self.leaving = False
        self._drained = None
        if self.store.nodes is not None:
            self.remote = Remote(self, self.store.nodes)
            self.remote.start()

    # --- runs

    def begin(
        self, name: str, *, version: str, args: bytes, payload: bytes,
        principal: str | None = None, key: str | None = None, fingerprint: str | None = None,
        run_id: str | None = None, parent: str | None = None, concurrency_key: str | None = None,
        exclusive: bool = False,
    ) -> LiveRun:  # fmt: skip
        """Begin a run: append its first entry. It is durable only with the log's next commit.

        Raises: Overloaded while draining, or with too many runs alive.
        """
        self.check_room()
        now_ms = self.clock.now_ms()
        record = RunRecord(
            run_id or new_run_id(now_ms), plain(name), "running", now_ms, now_ms, 1, -1, 0, 0,
            version, principal, key, fingerprint,
            parent=parent, concurrency_key=concurrency_key, exclusive=exclusive,
        )  # fmt: skip
        run = LiveRun(self.log, record, opening=True)
        run.strict = self.strict
        self.runs[record.run_id] = run
        self.conflicts.began(run)
        if self.observer is not None:
            args = self.observer.begun(run, args)
        run.append(Kind.STARTED, b"", payload, args=args)
        return run

    def check_store(self) -> None:
        """Leave if a write has failed that no batch was waiting for (I9)."""
        if self.store.failed is not None:
            self.log.fail(self.store.failed)

    def check_room(self) -> None:
        """Raise Overloaded if no further run can be taken."""
        if self.draining or self.leaving:
            raise Overloaded("the server is being stopped; try again shortly")
        if len(self.runs) >= RUNS_LIVE_MAX:
            raise Overloaded(f"{RUNS_LIVE_MAX:,} runs are at work; try again shortly")

    @property
    def away(self) -> str | None:
        """Why nothing can be made durable for now; None while all is well."""
        return self.remote.nodes.away if self.remote is not None else None

    def forget(self, run: LiveRun) -> None:
        """Drive a run no longer; whoever still reads it keeps it, and finds it when it goes on."""
        self._loads.pop(run.id, None)
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
            if run.record.status not in TERMINAL and run.gone is None and not run.damaged:
                self._keep_idle(run)
            elif run.over:  # a circle, which only the garbage collector would find
                run.pace.caller = None

    def _keep_idle(self, run: LiveRun) -> None:
        """Keep a run for its readers, for as long as there are any."""
        self.idle[run.id] = run
        if self.remote is not None:
            self.remote.watch(run)

    async def claim(self, run_ids: Sequence[str], *, dead: bool = False) -> list[LiveRun]:
        """Take charge of unfinished runs that nobody here drives; see `Store.claim`."""
        wanted = [i for i in run_ids if i not in self.runs and i not in self.claiming]
        self.claiming.update(wanted)
        try:
            claimed = await self.store.claim(wanted, self.clock.now_ms(), dead=dead)
            return [self._adopt(record) for record in claimed]
        finally:
            self.claiming.difference_update(wanted)

    def _adopt(self, record: RunRecord) -> LiveRun:
        self._loads.pop(record.run_id, None)
        run = self.idle.pop(record.run_id, None)
        if run is None or run.gone is not None:
            run = LiveRun(self.log, record, opening=False)
        run.take_over(record)
        run.strict = self.strict
        self.runs[record.run_id] = run
        return run

    async def observe(self, run_id: str, principal: str | None = None) -> LiveRun:
        """Return a run for reading, from memory or from the store.

        Raises: RunNotFound if there is none or it is another principal's (I18); RunDeleted.
        """
        run = self._known(run_id)
        if run is not None and run.log.loop is not asyncio.get_running_loop():
            run = None
        fresh = False
        if run is None and RUN_ID.fullmatch(run_id):
            loading = self._loading.get((run_id, principal))
            fresh = loading is None
            if loading is None:
                load = self._load(run_id, principal)
                loading = asyncio.get_running_loop().create_task(load)
                self._loading[run_id, principal] = loading
                loading.add_done_callback(lambda _: self._loading.pop((run_id, principal), None))
            run = await asyncio.shield(loading)
        if run is not None and not fresh and self.remote is not None:
            run = await self.remote.current(run) or await self._load(run_id, principal)
        if run is None or run.record.principal != principal or run.durable_seq < 0:
            raise RunNotFound(run_id)
        return run

    def _known(self, run_id: str) -> LiveRun | None:
        """Return a run in memory, unless it was fenced: then it goes on elsewhere."""
        ours = self.runs.get(run_id) if self.waking.may_act() else None
        for run in (ours, self.idle.get(run_id)):
            if run is not None and (run.gone is None or self.leaving):
                return run
        return None

    async def _load(self, run_id: str, principal: str | None) -> LiveRun:
        run = None
        while run is None:
            mark = object()  # each load its own: they begin and end one by one
            self._loads.setdefault(run_id, set()).add(mark)
            try:
                run = await stored_run(self.store, self.log, run_id, principal)
            finally:
                marks = self._loads.get(run_id, set())
                changed = mark not in marks
                marks.discard(mark)
                if not marks:
                    self._loads.pop(run_id, None)
            if changed:
                run = None
        known = self._known(run_id)
        if known is not None:  # somebody was faster
            return known
        if run.record.status not in TERMINAL and run.fenced is None:
            self._keep_idle(run)
        if run.record.status == "completed":
            run.body_end_seq = max(run.body_end_seq, 0)
        return run

    async def cancel(self, run: LiveRun, *, by: str | None = None) -> None:
        """Ask a run to stop; returns when that is durable. Its partial output stays.

        A dead run is dropped: what it has done is undone, as with any other. `by` is recorded.
        """
        await steering.cancel(self, run, by)

    async def retry(self, run: LiveRun, *, by: str | None = None) -> bool:
        """Have a dead or diverged run go on; returns when that is durable. False for others.

        The failure that it died of is void; what is recorded besides stays.
        """
        return await steering.retry(self, run, by)

    async def fork(
        self, run: LiveRun, before_seq: int, *,
        payload: bytes | None = None, results: Mapping[str, bytes] | None = None,
        by: str | None = None,
    ) -> LiveRun:  # fmt: skip
        """Begin a run that shares another's journal up to an entry. See `steering.fork`."""
        return await steering.fork(self, run, before_seq, payload=payload, results=results, by=by)

    async def signal(
        self, run: LiveRun, name: str, data: Any = None, *,
        signal_id: str | None = None, by: str | None = None,
        kinds: frozenset[str] = LISTED, ident: str | None = None,
    ) -> Receipt:  # fmt: skip
        """Give a run a signal; returns when that is durable.

        `data` is a JSON value of at most 256 KiB. Signals of one `signal_id` are one signal.

        Raises: RunEnded, RunNotFound, AlreadyAnswered, SignalRefused, Overloaded,
        NotSerializable, PayloadTooLarge.
        """
        encoded = encode_data(name, data)
        signal = Signal(signal_id or uuid4().hex, name, encoded, by, kinds, ident)
        return await self.waking.signal(run, signal)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the runs; it ends with the engine."""
        context = Context()
        context.run(PATIENCE_S.set, None)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def delete(self, run: LiveRun) -> bool:
        """Remove an ended run for good (I21); False while it is unfinished."""
        if ended := run.record.status in ENDED:
            self.forget(run)
            self.idle.pop(run.id, None)
            await self.store.delete(run.id)
            if run.record.status == "dead":  # its parent has waited for somebody to retry it
                self.waking.child_ended(run)
        return ended

    async def list(self, query: Query) -> list[RunRecord]:
        """Return runs as the store has them, newest first."""
        return await self.store.list(query)

    async def unfinished(self) -> AsyncIterator[RunRecord]:
        """Yield running runs of which nobody here has charge."""
        before = None
        while True:
            page = Query(("running",), before=before, limit=LIST_ROWS_MAX, unowned=True)
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

        What is left is as safe as after a kill: the next process goes on with it. A second call
        waits for the first, and can shorten its grace.
        """
        if self._log is None:
            return
        self.draining = self.leaving = True
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        if self._drained is None:
            self._drain_until_s, self._hurry = until_s, asyncio.Event()
            self._drained = loop.create_task(self._drain(self._hurry))
        elif self._hurry is not None and until_s < self._drain_until_s:
            self._drain_until_s = until_s
            self._hurry.set()
        await asyncio.shield(self._drained)

    async def _drain(self, hurry: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        working = {run.task for run in self.runs.values() if run.task is not None}
        while working and (left_s := self._drain_until_s - loop.time()) > 0:
            hurry.clear()
            signal = loop.create_task(hurry.wait())
            await asyncio.wait(
                [signal, *working], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            signal.cancel()
            working = {task for task in working if not task.done()}
        await self.log.flush()
        left = [run for run in self.runs.values() if run.record.status not in TERMINAL]
        for run in [*left, *self.idle.values()]:  # others may have seen what these appended (I8)
            run.fence("the server is being stopped", keep=True)
            if self.observer is not None:
                self.observer.left(run)
        tasks = [run.task for run in left if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        await self.log.flush()
        if self.log.failed is None and left:
            await self.store.release([run.id for run in left])
            logger.info("left %d runs to the next process", len(left))

    async def close(self) -> None:
        """Drain without a grace, write what is left, let the store go."""
        if self._log is None:
            return
        await self.drain(0)
        loop = asyncio.get_running_loop()
        tasks = [task for task in self.tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.log.flush()
        self._log = None
        self._logs.clear()
        self.runs.clear()
        self.remote = None
        await self.store.close()
