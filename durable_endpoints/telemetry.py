"""Telemetry: OpenTelemetry spans of runs, and the ids of run and step in log records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from durable_endpoints.engine.observing import STEP
from durable_endpoints.engine.scope import SCOPE

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from durable_endpoints.engine.observing import Observer


def observer(provider: TracerProvider | None = None) -> Observer | None:
    """Return what an engine tells of its work; None if opentelemetry-api is not installed.

    `provider` makes the spans, OpenTelemetry's global one if it is not given.
    """
    try:
        from durable_endpoints.spans import Spans
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        logging.getLogger("durable_endpoints").warning(
            "telemetry is on, but opentelemetry is not installed: "
            'pip install "durable-endpoints[otel]"'
        )
        return None
    return Spans(provider)


class RunFilter(logging.Filter):
    """Gives log records the fields `run_id`, `step_id` and `step` ("" outside of runs and steps).

    Give it to a handler: `handler.addFilter(RunFilter())`. What a handler of the app logs again
    while its run is replayed is left out, unless `replays` is set. `step_id` and `step` need
    `DurableMiddleware(telemetry=True)`.
    """

    def __init__(self, *, replays: bool = False) -> None:
        super().__init__()
        self._replays = replays

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        scope = SCOPE.get()
        step = STEP.get() if scope is not None else None
        record.run_id = "" if scope is None else scope.run.id
        record.step_id, record.step = step or ("", "")
        if scope is None or scope.inert or self._replays:
            return True
        return scope.run.replay is None
