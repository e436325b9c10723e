"""How a run ends, by what became of the app that answered its request."""

from __future__ import annotations

import asyncio
from typing import Final

from durable_endpoints.asgi.capture import ResponseCapture
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import ControlSignal
from durable_endpoints.records import Kind

_ERROR_CHARS_MAX: Final = 2000


def conclude(
    run: LiveRun, capture: ResponseCapture | None, error: BaseException | None, *, leaving: bool
) -> None:
    """Append the terminal entry that fits what became of the app (I15)."""
    if run.fenced is not None or run.over:
        return
    complete = capture is not None and capture.ended
    if run.cancelling:
        run.end(Kind.CANCELLED, "cancelled", None)
    elif leaving and not complete:
        # Frameworks cut their streams when the server stops: no word about the run.
        run.fence("the server is being stopped")
    elif error is not None and is_cancellation(error):
        if run.error is not None:
            run.end(Kind.FAILED, "failed", run.error)
        else:
            run.fence("the server cancelled the request; the run is taken up again")
    elif run.replay is not None and not run.replay.journal.exhausted:
        run.diverge(run.replay.journal.difference())
    elif error is not None:
        run.end(Kind.FAILED, "failed", described(error))
    elif not complete:
        run.end(Kind.FAILED, "failed", "the app returned before its response was complete")
    else:
        run.end(Kind.COMPLETED, "completed", None)


def is_cancellation(error: BaseException) -> bool:
    """Say whether an error is nothing but tasks being told to stop."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(inner) for inner in error.exceptions)
    return isinstance(error, asyncio.CancelledError | ControlSignal)


def described(error: BaseException) -> str:
    """Return an error as a run keeps it: a group of one is its one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
