"""Group commit: everything appended so far goes to the store in one transaction.

Self-clocking: an idle log commits at the end of the loop turn that appended, a busy one gathers
while a batch is in flight. One batch at a time, in order, so what is durable is a prefix (I8).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from durable_endpoints.clock import Clock
from durable_endpoints.engine.meters import Meters
from durable_endpoints.engine.observing import Observer
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.wait import Signal
from durable_endpoints.errors import StoreError
from durable_endpoints.limits import WINDOW_AGE_S_MAX, WINDOW_BYTES_MAX, WINDOW_ENTRIES_MAX
from durable_endpoints.quotas import Quotas
from durable_endpoints.stores.protocol import Store

EXIT_STORE_FAILED = 70
logger = logging.getLogger("durable_endpoints")


def leave(reason: str) -> None:
    """End the process at once: after a failed write nothing in memory may be believed (I9)."""
    logger.critical("%s; exiting so that the restart decides what is true", reason)
    os._exit(EXIT_STORE_FAILED)


class Host(Protocol):
    """What a run asks of the engine around it. See `waking`."""

    suspend_grace_s: float
    quotas: Quotas

    def holds(self, run: LiveRun) -> bool:
        """Say whether somebody needs the run in memory."""
        ...

    def may_act(self) -> bool:
        """Say whether this node may begin what a crash cannot undo (I3)."""
        ...

    async def settled(self, run: LiveRun) -> None:
        """Wait for as long as another node may have a run that this one drives (I3)."""
        ...

    def rested(self, run: LiveRun) -> None:
        """Note that a run is durably suspended."""
        ...

    def lost(self, run: LiveRun) -> None:
        """Note that a run was fenced before its suspension was known to be durable."""
        ...

    def child_awaited(self, run: LiveRun, child_id: str) -> None:
        """Answer the run's wait for a child that may have ended already."""
        ...

    def child_ended(self, child: LiveRun) -> None:
        """Note that a run which another one waits for is at its end."""
        ...

    async def begin_child(
        self, run: LiveRun, child_id: str, function: Callable[..., Any],
        args: tuple[Any, ...], kwargs: dict[str, Any], *, fresh: bool = False,
    ) -> None:  # fmt: skip
        """Begin a child run, unless there is one of this id; of a fresh one there is none."""
        ...

    async def cancel_child(self, run: LiveRun, child_id: str) -> None:
        """Cancel a child run, unless it is at its end."""
        ...

    def turn_awaited(self, run: LiveRun) -> None:
        """Tell a run when it is the first of its concurrency key."""
        ...

    def key_freed(self, run: LiveRun) -> None:
        """Note that a run which held a concurrency key is at its end."""
        ...

    def approval_path(self, run_id: str, ident: str, until_ms: int | None) -> str:
        """Return the signed path under which a person decides."""
        ...

    async def send(self, run_id: str, signal: Signal) -> None:
        """Give another run a signal; returns when that is durable."""
        ...


class Log:
    """The one writer of a store."""

    def __init__(
        self, store: Store, clock: Clock, host: Host, on_failure: Callable[[str], None] = leave
    ) -> None:
        self.host = host
        self.store = store
        self.clock = clock
        self.now_ms, self.monotonic_s = clock.now_ms, clock.monotonic_s
        self.loop = asyncio.get_running_loop()
        self.thread_id = threading.get_ident()
        self.observer: Observer | None = None
        self.failed: str | None = None
        self.commits = 0
        self.meters = Meters()
        # Whether the unpersisted window is full: whoever would append more must wait (I14).
        self.full = False
        self._on_failure = on_failure
        self._queue: list[LiveRun] = []
        self._entries = 0  # appended and not durable, in the queue or in flight
        self._bytes = 0
        self._oldest_s = 0.0
        self._begun = self._ended = 0  # batches
        self._writing: asyncio.Task[None] | None = None
        self._flush: asyncio.Handle | None = None
        self._context = Context()  # the writer belongs to no run
        self._room: list[asyncio.Future[None]] = []

    def appended(self, run: LiveRun, size: int) -> None:
        """Note that a run has something to write."""
        if not self._entries:
            self._oldest_s = self.clock.monotonic_s()
        self._entries += 1
        self._bytes += size
        if self._entries & 15 == 0 or self._bytes >= WINDOW_BYTES_MAX:
            self.full = self._is_full()
        if not run.queued:
            run.queued = True
            self._queue.append(run)
            if self._writing is None and self._flush is None:
                self._flush = self.loop.call_soon(self._start, context=self._context)

    def _is_full(self) -> bool:
        entries = self._entries
        return entries > 0 and (
            entries >= WINDOW_ENTRIES_MAX
            or self._bytes >= WINDOW_BYTES_MAX
            or self.clock.monotonic_s() - self._oldest_s > WINDOW_AGE_S_MAX
        )

    @property
    def lag_s(self) -> float:
        """Since when the oldest entry that is not durable has been waiting; 0 if there is none."""
        return self.clock.monotonic_s() - self._oldest_s if self._entries > 0 else 0.0

    async def room(self) -> None:
        """Wait until the window has room."""
        while self._is_full() and self.failed is None:
            waiter = self.loop.create_future()
            self._room.append(waiter)
            await waiter

    async def flush(self) -> None:
        """Wait until everything appended so far is durable, however busy others keep the log."""
        last = self._begun + bool(self._queue)
        while self._ended < last and (self._writing is not None or self._flush is not None):
            waiter = self.loop.create_future()
            self._room.append(waiter)
            await waiter
        await asyncio.sleep(0)  # also with nothing to do: a caller may loop over it

    def _start(self) -> None:
        self._flush = None
        if self.failed is None:
            self._writing = self.loop.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._queue and self.failed is None:
                runs, self._queue = self._queue, []
                self._begun += 1
                entries, size = self._entries, self._bytes
                began_s = self.clock.monotonic_s()
                for run in runs:
                    run.queued = False
                runs = [run for run in runs if run.writable]
                frames = [run.take_frame() for run in runs]
                fenced = await self.store.append(frames)
                self.commits += 1
                self.meters.batch(self.clock.monotonic_s() - began_s, entries)
                self._entries -= entries
                self._bytes -= size
                self._oldest_s = began_s
                for run, frame in zip(runs, frames, strict=True):
                    if run.record.run_id in fenced:
                        run.fence("another process commits for this run")
                        if self.observer is not None:
                            self.observer.left(run)
                    else:
                        run.committed(frame)
                        if self.observer is not None:
                            self.observer.committed(run, frame)
                self._ended = self._begun
                self.full = self._is_full()
                self._give_room()
        except StoreError as error:
            self.fail(str(error))
        except Exception as error:
            logger.exception("the log failed")
            self.fail(f"the log failed: {error!r}")
        finally:
            self._writing = None
            self._give_room()

    def fail(self, reason: str) -> None:
        """Poison the log: nothing is acknowledged any more, and the process leaves (I9)."""
        if self.failed is None:
            self.failed = reason
            self._give_room()
            self._on_failure(reason)

    def _give_room(self) -> None:
        waiting, self._room = self._room, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
