"""The time by which a run is to be at its end, its waits included."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from durable_endpoints.limits import TIMER_RECHECK_S

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun

# How long until the next look at a run that is still on its way to where it was.
_REPLAYING_S: Final = 0.05


class Deadline:
    """Fails one run in memory when its time is over."""

    __slots__ = ("_handle", "_run", "at_ms")

    def __init__(self, run: LiveRun, at_ms: int) -> None:
        self.at_ms = at_ms
        self._run = run
        self._handle: asyncio.Handle
        self._watch()

    def _watch(self) -> None:
        log = self._run.log
        left_s = max(0.0, (self.at_ms - log.clock.due_ms()) / 1000)
        self._handle = log.loop.call_later(min(left_s, TIMER_RECHECK_S), self._check)

    def _check(self) -> None:
        run = self._run
        if run.fenced is not None or run.over:
            return
        if run.log.clock.due_ms() < self.at_ms or not run.caught_up or run.task is None:
            self._handle = run.log.loop.call_later(_REPLAYING_S, self._watch)
        else:  # a task that is only about to begin would end without a word
            self._handle = run.log.loop.call_soon(self._time_out)

    def _time_out(self) -> None:
        run = self._run
        if run.error is not None or run.fenced is not None:
            return
        if run.task is not None and run.cancellation.stage == "at work":
            run.error = "the run took longer than its timeout"
            run.task.cancel(run.error)

    def look_again(self) -> None:
        """Look whether the time is over now: the clock was set."""
        self._handle.cancel()
        self._check()

    def close(self) -> None:
        """Watch no longer: the handler is at its end."""
        self._handle.cancel()
