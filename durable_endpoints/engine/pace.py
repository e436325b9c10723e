"""How a run takes turns: with its neighbours on the event loop, and its own tasks in between.

Completions reach the tasks of a run one at a time, in journal order and some loop turns apart,
live and at replay alike: so what follows from one of them comes before the next one, both times.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from durable_endpoints.engine.life import expire
from durable_endpoints.limits import FIRST_COMMIT_S_MAX, TURN_S_MAX
from durable_endpoints.records import Kind

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun
    from durable_endpoints.engine.scope import Scope

# From a completion to what the handler does about it through gather, as_completed or a task
# group are 2 to 4 turns.
TURNS_APART: Final = 6
Ticket: TypeAlias = "tuple[asyncio.Future[None] | None, asyncio.Future[None]]"


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Pace:
    """The turns of one going of a run's handler."""

    __slots__ = ("_first", "_last", "_loop", "caller", "noted", "shared", "yielded_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, now_s: float) -> None:
        self.caller: Scope | None = None  # the one task that completions come to, if not shared
        self.shared = False  # whether steps of the run are at work side by side
        self.noted = False  # in the journal
        self.yielded_s = now_s  # when the handler last let others go on
        self._first = 0  # how many events are durable once a reader has its first piece
        self._loop = loop
        self._last: asyncio.Future[None] | None = None

    def share(self, run: LiveRun) -> None:
        """Keep completions apart from here on, and note it for the replay."""
        self.shared = True
        if not self.noted and run.replay is None and run.fenced is None and not run.over:
            self.noted = True
            run.append(Kind.SHARED)

    # --- among the run's tasks

    def ticket(self) -> Ticket:
        """Take the next place in the order of completions; `pass_on` must follow."""
        before, self._last = self._last, self._loop.create_future()
        return before, self._last

    async def pass_on(self, ticket: Ticket) -> None:
        """Wait until the completion before has had its turns, and begin one's own."""
        before, own = ticket
        if before is not None and not before.done():
            waiter = self._loop.create_future()
            before.add_done_callback(partial(_wake, waiter))
            try:
                await waiter
            except asyncio.CancelledError:
                self.skip(ticket)
                raise
        self._release(own, TURNS_APART)

    def skip(self, ticket: Ticket) -> None:
        """Give a place up: whoever has the next one need not wait for this one."""
        before, own = ticket
        if before is None or before.done():
            own.set_result(None)
        else:
            before.add_done_callback(lambda _: own.set_result(None))

    def set_apart(self) -> None:
        """Let the next completion wait until what follows from this moment has been done."""
        self._release(self.ticket()[1], TURNS_APART)

    @property
    def at_rest(self) -> bool:
        """Whether no completion is on its way to a task."""
        return self._last is None or self._last.done()

    def _release(self, own: asyncio.Future[None], turns: int) -> None:
        if turns:
            self._loop.call_soon(self._release, own, turns - 1)
        else:
            own.set_result(None)

    # --- among runs

    def is_due(self, now_s: float) -> bool:
        """Say whether the handler has kept the event loop too long."""
        return now_s - self.yielded_s > TURN_S_MAX

    def hurry(self, run: LiveRun) -> None:
        """Let others go on at the next piece, for once: a reader waits for this one, its first."""
        self.yielded_s -= TURN_S_MAX
        self._first = run.offset

    def hogs(self, began_s: float, now_s: float) -> bool:
        """Say whether the handler has kept the event loop too long, from a step's times."""
        if now_s - began_s > TURN_S_MAX:
            self.yielded_s = now_s  # the step has waited, so others had their turn
            return False
        return now_s - self.yielded_s > TURN_S_MAX  # `is_due`, without the call

    async def give_way(self, run: LiveRun) -> None:
        """Let others go on: called when the handler has kept the event loop for a while."""
        await asyncio.sleep(0)
        if self._first:
            # Once, let the first commit through, whose thread needs the interpreter as much as
            # the handler does, and the reader behind it.
            first, self._first = self._first, 0
            until_s = self._loop.time() + FIRST_COMMIT_S_MAX
            while run.readers and run.fenced is None and run.durable_offset < first:
                if (left_s := until_s - self._loop.time()) <= 0:
                    break
                waiter = run.progress()
                timer = self._loop.call_later(left_s, expire, waiter)
                await waiter
                timer.cancel()
            await asyncio.sleep(0)
        self.yielded_s = run.log.clock.monotonic_s()
