"""Replay, the part that waits: hands recorded completions out in journal order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from durable_endpoints.engine.pace import Pace
from durable_endpoints.journal import Delivery, Journal
from durable_endpoints.limits import REPLAY_STALL_S

if TYPE_CHECKING:
    from durable_endpoints.engine.scope import Scope


class Replay:
    """A journal under replay, and the calls that wait for their turn."""

    def __init__(
        self,
        journal: Journal,
        pace: Pace,
        loop: asyncio.AbstractEventLoop,
        on_exhausted: Callable[[], None],
        on_stall: Callable[[str], object],
        on_cancel: Callable[[], None],
        stall_s: float = REPLAY_STALL_S,
    ) -> None:
        self.journal = journal
        self.working = 0  # live steps, for which a replay may wait as long as they take
        self._pace = pace
        self._loop = loop
        self._on_exhausted = on_exhausted
        self._on_stall = on_stall
        self._on_cancel = on_cancel
        self._stall_s = stall_s
        self._moves = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._ending: list[asyncio.Future[None]] = []
        self._timer = loop.call_later(stall_s, self._check, 0)

    async def turn(self, delivery: Delivery) -> None:
        """Wait until it is this completion's turn, and take it."""
        journal = self.journal
        try:
            while not journal.is_turn(delivery):
                waiter = self._loop.create_future()
                self._waiting[delivery.index] = waiter
                await waiter
            if journal.keeps_distance(delivery):
                await self._pace.pass_on(self._pace.ticket())
        finally:
            # Also when the caller was cancelled: live, too, it was complete by then.
            self.take(delivery)

    def take(self, delivery: Delivery) -> None:
        """Take a completion now, in turn or not: for callers that cannot wait."""
        self.journal.deliver(delivery)
        self.moved()

    def moved(self) -> None:
        """Wake whoever is next, after a delivery or a matched event."""
        self._moves += 1
        journal = self.journal
        if journal.telling and journal.at_cancel:
            self._on_cancel()
        upcoming = journal.upcoming
        if upcoming is not None:
            waiting = self._waiting.get(upcoming.index) if self._waiting else None
            if waiting is not None and journal.is_turn(upcoming):
                del self._waiting[upcoming.index]
                if not waiting.done():
                    waiting.set_result(None)
        elif journal.exhausted and not journal.telling:
            self.close()
            self._on_exhausted()

    def cancel(self) -> None:
        """Have the handler told of a cancellation that has just come, where its journal ends."""
        self.journal.cancel()
        self.moved()

    def told(self) -> None:
        """Go on behind the run's cancellation: its handler has been told of it."""
        self.journal.pass_cancellation()
        self.moved()

    def is_past(self, scope: Scope) -> bool:
        """Say whether the run was past where its code is now, in that task of it."""
        return self.journal.shows_more_than(scope.is_ahead)

    async def exhausted(self) -> None:
        """Wait until all that is recorded has happened again: what is new comes after it."""
        if not self.journal.exhausted or self.journal.telling:
            waiter = self._loop.create_future()
            self._ending.append(waiter)
            await waiter

    def close(self) -> None:
        """Stop watching, and let go on who waited for the end."""
        self._timer.cancel()
        for waiting in self._waiting.values():  # their turn will not come
            waiting.cancel()
        ending, self._ending = self._ending, []
        for waiter in ending:
            if not waiter.done():
                waiter.set_result(None)

    def _check(self, moves: int) -> None:
        if self.journal.exhausted and not self.journal.telling:
            return
        if moves == self._moves and not self.working:
            if self.journal.exhausted:  # a call that was at work is not made again: no matter
                self._on_cancel()
                return
            self._on_stall(
                f"replay stood still for {self._stall_s:g} s: {self.journal.difference()}"
            )
            return
        self._timer = self._loop.call_later(self._stall_s, self._check, self._moves)
