"""One going of a run's handler, and the end of a wait for the run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable_endpoints.engine.labels import Labelling


def expire(waiter: asyncio.Future[bool]) -> None:
    """Tell who waits for a run that its time is over."""
    if not waiter.done():
        waiter.set_result(False)


class Life:
    """One going of a run's handler: what an old one still says is void."""

    __slots__ = ("_put_off", "at_work", "halted", "labelling", "looking", "over", "working")

    def __init__(self) -> None:
        self.over = False  # the handler was begun anew
        self.halted = False  # nothing new begins: that, or the run is being undone
        self.working = 0  # steps at work: the run is not idle
        self.at_work: set[str] = set()  # the calls of steps that are
        self.labelling: Labelling | None = None  # once it has said something of labels
        self.looking = 0  # calls that look something up, at a replay only: it is not at rest
        self._put_off = False

    def begin(self, ident: str) -> None:
        """Note that the step of a call is at work."""
        self.working += 1
        self.at_work.add(ident)

    def end(self, ident: str) -> None:
        """Note that it no longer is."""
        self.working -= 1
        self.at_work.discard(ident)

    def puts_off(self) -> bool:
        """Say whether a cancellation has to wait until the handler has come to a rest."""
        self._put_off = self._put_off or self.looking > 0
        return self.looking > 0

    def looked(self) -> bool:
        """Note that one call has looked; say whether a cancellation has waited for it."""
        self.looking -= 1
        late = self._put_off and not self.looking
        self._put_off = self._put_off and not late
        return late
