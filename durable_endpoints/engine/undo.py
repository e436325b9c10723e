"""Compensations: what has been done and can be undone, in reverse order, when a run fails."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from durable_endpoints.codec import Codec
from durable_endpoints.engine.outcomes import described
from durable_endpoints.retry import Retry

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun

logger = logging.getLogger("durable_endpoints")
PREFIX: Final = "undo/"
# A compensation that is given up leaves the world half changed: try for about an hour.
RETRY: Final = Retry(attempts=30, initial=0.5, maximum=300.0)


@dataclass(frozen=True, slots=True)
class Undo:
    """The compensation of one completed step: `function` is called with the step's arguments."""

    seq: int  # of its result
    ident: str
    step: str
    function: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


async def compensate(run: LiveRun) -> list[str]:
    """Undo what the run has done, last first; return what could not be undone.

    Each compensation is a durable effect: one that was done before a crash is not done again.
    """
    from durable_endpoints.engine.attempts import run_attempts
    from durable_endpoints.engine.scope import Scope
    from durable_endpoints.engine.steps import StepSpec

    left: list[str] = []
    scope = Scope(run, PREFIX)
    for undo in sorted(run.undo, key=lambda undo: undo.seq, reverse=True):
        own = getattr(undo.function, "durable_step", None)
        name = f"undo {undo.step}"
        retry = own.retry if own is not None and own.retry is not None else RETRY
        spec = StepSpec(name, Codec(f"compensation {name}"), retry=retry, effect=True)
        function = inspect.unwrap(undo.function) if own is not None else undo.function
        try:
            await run_attempts(
                scope, f"{PREFIX}{undo.ident}", spec, function, undo.args, undo.kwargs
            )
        except Exception as error:
            logger.exception("run %s: %s could not be undone", run.id, undo.step)
            left.append(f"{undo.step} ({described(error)})")
    run.given_up = None
    return left
