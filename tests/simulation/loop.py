"""An event loop in virtual time that the world turns, one callback at a time.

It keeps asyncio's promises (callbacks of `call_soon` run in order, a timer is never early) and
nothing else: how long anything takes is the world's choice, so every order that a machine could
come to is some schedule's.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from typing import Any


class SimFuture(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, *, loop: SimLoop) -> None:
        super().__init__(loop=loop)
        self._number = loop.next_number()

    def __hash__(self) -> int:
        return self._number


class SimTask(asyncio.Task[Any]):
    """A task, likewise."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: SimLoop, **more: Any) -> None:
        self._number = loop.next_number()
        super().__init__(coro, loop=loop, **more)
        loop.tasks.append(self)

    def __hash__(self) -> int:
        return self._number


def _task(loop: Any, coro: Any, *, context: Context | None = None, **_: Any) -> SimTask:
    return SimTask(coro, loop=loop, context=context)


class SimLoop(asyncio.BaseEventLoop):
    """One process's loop. `time` is the world's; `on_error` hears of what nobody caught."""

    _ready: Any
    _scheduled: list[Any]

    def __init__(
        self, time: Callable[[], float], jitter: Callable[[], float],
        on_error: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self.tasks: list[SimTask] = []
        self._time = time
        self._jitter = jitter
        self._numbers = 0
        self.dead = False
        self.set_task_factory(_task)
        self.set_exception_handler(lambda _, told: None if self.dead else on_error(told))

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def time(self) -> float:
        return self._time()

    def create_future(self) -> SimFuture:
        return SimFuture(loop=self)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        # A machine's timers are late, never early, and two of one time come in either order.
        return super().call_at(when + self._jitter(), callback, *args, context=context)

    def enter(self) -> None:
        """Become the running loop."""
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(finalizer=self._let_go)

    def _let_go(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self.dead:
            self.call_soon(self.create_task, generator.aclose())

    def due(self, now: float) -> bool:
        """Move the timers that are due to the callbacks; say whether there is one to run."""
        scheduled = self._scheduled
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= now):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                self._ready.append(timer)
        return bool(self._ready)

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due."""
        return self._scheduled[0]._when if self._scheduled else None

    def turn(self) -> None:
        """Run one callback."""
        handle = self._ready.popleft()
        if not handle._cancelled:
            handle._run()

    def die(self) -> None:
        """Never run anything again; what is left of it makes no noise."""
        self.dead = self._closed = True
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""
