"""The waits between tries, and the end of patience."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from durable_endpoints.client.answers import ConnectionLost
from durable_endpoints.clock import Clock

logger = logging.getLogger("durable_endpoints.client")

# A random part of 0.25 s, 0.5 s, 1 s … up to the cap, so that the clients of a restarted server
# do not all come back at once.
BACKOFF_S: Final = 0.25
BACKOFF_S_MAX: Final = 10.0

_random: Final = random.SystemRandom()


class Backoff:
    """Exponential backoff with full jitter, on top of what the server asks for.

    `floor_s` is the server's `retry:`; `patience_s` how long tries may fail without a sign of
    life in between.
    """

    def __init__(self, patience_s: float, clock: Clock) -> None:
        self.floor_s = 0.0
        self._patience_s = patience_s
        self._clock = clock
        self._tries = 0
        self._failing_since_s: float | None = None

    def alive(self) -> None:
        """Note a sign of life: an event, a heartbeat, an answer."""
        self._tries = 0
        self._failing_since_s = None

    async def wait(self, cause: Exception, retry_after_s: float = 0.0) -> None:
        """Sleep before the next try. Raises ConnectionLost when patience would run out."""
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S * 2 ** min(self._tries, 16))
        delay_s = max(self.floor_s, retry_after_s) + _random.uniform(0, ceiling_s)
        self._tries += 1
        now_s = self._clock.monotonic_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        silent_s = now_s - self._failing_since_s
        if silent_s + delay_s > self._patience_s:
            raise ConnectionLost(
                f"tries have failed for {silent_s:.0f} s (patience_s={self._patience_s:g}), the "
                f"last with {cause!r}. A run that was started goes on: resume(run_id) finds it."
            ) from cause
        logger.info("try %d in %.2f s, after %r", self._tries, delay_s, cause)
        await asyncio.sleep(delay_s)
