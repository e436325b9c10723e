"""How a run ends, by what became of the app that answered its request."""

from __future__ import annotations

from durable_endpoints.asgi.capture import ResponseCapture
from durable_endpoints.engine.outcomes import described, is_cancellation
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.records import Kind


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
