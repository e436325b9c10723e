"""The only reader of time. Everything else gets a `Clock`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine


class Clock(Protocol):
    """What the engine asks of time."""

    def now_ms(self) -> int:
        """Wall-clock time, in milliseconds since 1970 UTC. May jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point. Never goes back."""
        ...

    def due_ms(self) -> int:
        """Wall-clock time for deciding what is due: does not go back when the wall clock does.

        In milliseconds since 1970 UTC.
        """
        ...


@runtime_checkable
class SettableClock(Clock, Protocol):
    """A clock that is set by hand: it tells those who wait, as no machine's clock can."""

    def attach(self, engine: Engine) -> None:
        """Call the engine's `waking.clock_was_set` whenever the clock was set."""
        ...


class SystemClock:
    """The machine's clock."""

    def __init__(self) -> None:
        self._started = time.time_ns() // 1_000_000, time.monotonic()

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    # See `Clock.monotonic_s`. Each step asks twice: a call in between would cost as much again.
    monotonic_s = staticmethod(time.monotonic)

    def due_ms(self) -> int:
        """See `Clock.due_ms`."""
        wall_ms, monotonic_s = self._started
        return max(self.now_ms(), wall_ms + int((time.monotonic() - monotonic_s) * 1000))
