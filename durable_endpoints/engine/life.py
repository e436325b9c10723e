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

    __slots__ = ("at_work", "halted", "labelling", "over", "working")

    def __init__(self) -> None:
        self.over = False  # the handler was begun anew
        self.halted = False  # nothing new begins: that, or the run is being undone
        self.working = 0  # steps at work: the run is not idle
        self.at_work: set[str] = set()  # the calls of steps that are
        self.labelling: Labelling | None = None  # once it has said something of labels

    def begin(self, ident: str) -> None:
        """Note that the step of a call is at work."""
        self.working += 1
        self.at_work.add(ident)

    def end(self, ident: str) -> None:
        """Note that it no longer is."""
        self.working -= 1
        self.at_work.discard(ident)
