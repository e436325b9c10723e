"""A run's cancellation: whether somebody asked for it, and what the handler is told of it.

It is told while it is at rest, live and at a replay alike: so what it does to clean up has the
same place in the journal both times (I11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from durable_endpoints.engine.pace import TURNS_APART
from durable_endpoints.errors import IllegalTransition

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun

Stage = Literal["at work", "told", "unwinding", "given up"]

# What becomes of a handler. Only one that has been told, and not ended since, may be cut.
STAGES: Final[dict[Stage, frozenset[Stage]]] = {
    "at work": frozenset({"told", "unwinding", "given up"}),
    "told": frozenset({"unwinding"}),
    "unwinding": frozenset(),  # a cancel now lets the run end as cancelled, and disturbs nobody
    "given up": frozenset(),  # the run is dead: its cancel is for who takes it up again
}


class Cancellation:
    """The cancellation of one going of a run's handler."""

    __slots__ = ("_looking", "_put_off", "asked", "stage")

    def __init__(self) -> None:
        self.asked = False  # in the journal
        self.stage: Stage = "at work"
        self._looking = 0  # calls that look something up, at a replay only: it is not at rest
        self._put_off = False

    def move(self, stage: Stage) -> None:
        """Note what has become of the handler.

        Raises: IllegalTransition if the table has no such way.
        """
        if stage not in STAGES[self.stage]:
            raise IllegalTransition(f"a handler that is {self.stage} cannot become {stage}")
        self.stage = stage

    @property
    def pending(self) -> bool:
        """Whether the handler has yet to be told."""
        return self.asked and self.stage == "at work"

    def tell(self, run: LiveRun) -> None:
        """Tell the handler, once, when what follows from the last completion has been done."""
        if self.stage != "told":
            if self.stage == "at work":
                self.move("told")
            self._tell_after(run, TURNS_APART)

    def cut(self, run: LiveRun) -> None:
        """Cancel the handler now. It cleans up; what it does then is recorded as ever."""
        if self.stage == "at work":
            self.move("told")
        if run.task is not None and self.stage == "told":
            run.pace.set_apart()
            run.task.cancel("the run was cancelled")
        if run.replay is not None:
            run.replay.told()

    def _tell_after(self, run: LiveRun, turns: int) -> None:
        if turns and self.stage == "told":
            run.log.loop.call_soon(self._tell_after, run, turns - 1)
        elif self._looking:
            self._put_off = True
        else:
            self.cut(run)

    def look(self) -> None:
        """Note that a call looks something up that is recorded; `looked` must follow."""
        self._looking += 1

    def looked(self, run: LiveRun) -> None:
        """Note that it has; tell the handler what was put off until then."""
        self._looking -= 1
        if self._put_off and not self._looking:
            self._put_off = False
            if self is run.cancellation:
                self._tell_after(run, TURNS_APART - 1)
