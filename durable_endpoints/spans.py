"""Spans of runs, steps, effects and waits, by OpenTelemetry's API.

A run has one span for each of its lives: from its request, or its return after a crash or a
suspension, to its end or the next suspension. Later lives are in the trace of the first request,
and linked to the first life. Steps have a span for each attempt, under the life that made it.
Never a server span: those are the framework's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from durable_endpoints.engine.observing import ATTEMPT, STEP, Attempt
from durable_endpoints.frames import unpack
from durable_endpoints.records import Entry, Frame, Kind

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from durable_endpoints.engine.run import LiveRun
    from durable_endpoints.engine.steps import StepSpec

_W3C: Final = TraceContextTextMapPropagator()
_KEPT: Final = ("traceparent", "tracestate")
_BEGIN: Final = frozenset({Kind.TIMER, Kind.WAIT})
_ANSWER: Final = frozenset({Kind.RECEIVED, Kind.FIRED})
_BAD: Final = frozenset({"failed", "dead", "diverged"})


@dataclass(slots=True)
class Life:
    """One life of a run, and the waits that were open in it: their keys, since when (ms)."""

    span: Span
    context: Context
    waits: dict[str, int] = field(default_factory=dict)


class Spans:
    """Implements `Observer`."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("durable_endpoints", tracer_provider=provider)
        self._lives: dict[str, Life] = {}

    def begun(self, run: LiveRun, args: bytes) -> bytes:
        """See `Observer.begun`: the journal keeps the trace in which the run began."""
        meta = orjson.loads(args)
        parent = self._lives.get(run.record.parent or "")
        around = context.get_current() if parent is None else parent.context
        if not trace.get_current_span(around).get_span_context().is_valid:
            around = _W3C.extract(_headers(meta), around)
        origin = _span_context(meta.get("trace"))  # of the run that this one was forked from
        life = self._live(run, around, [] if origin is None else [Link(origin)])
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, life.context)
        meta.pop("trace", None)
        return orjson.dumps({**meta, "trace": carrier} if carrier else meta)

    def resumed(self, run: LiveRun, entries: Sequence[Entry]) -> None:
        """See `Observer.resumed`."""
        meta = orjson.loads(entries[0].args)
        first = _span_context(meta.get("trace"))
        around = _W3C.extract(_headers(meta), context.Context())
        if not trace.get_current_span(around).get_span_context().is_valid and first is not None:
            around = trace.set_span_in_context(trace.NonRecordingSpan(first), around)
        life = self._live(run, around, [] if first is None else [Link(first)])
        life.span.set_attribute("durable.run.resumed", value=True)
        for entry in entries:
            self._follow(run, life, entry, told=True)

    def _live(self, run: LiveRun, around: Context, links: Sequence[Link]) -> Life:
        record = run.record
        self.left(run)
        span = self._tracer.start_span(
            f"run {record.name}", context=around, links=links,
            attributes={
                "durable.run.id": record.run_id, "durable.run.name": record.name,
                "durable.run.version": record.version, "durable.run.attempt": record.attempts + 1,
            },
        )  # fmt: skip
        life = self._lives[run.id] = Life(span, trace.set_span_in_context(span, around))
        return life

    def attempt(self, run: LiveRun, ident: str, spec: StepSpec) -> Attempt:
        """See `Observer.attempt`."""
        life = self._lives.get(run.id)
        around = context.get_current() if life is None else life.context
        span = self._tracer.start_span(
            f"{'effect' if spec.effect else 'step'} {spec.name}", context=around,
            attributes={
                "durable.run.id": run.id, "durable.step.id": ident,
                "durable.step.name": spec.name, **(spec.about or {}),
            },
        )  # fmt: skip
        return StepSpan(span, (ident, spec.name))

    def committed(self, run: LiveRun, frame: Frame) -> None:
        """See `Observer.committed`."""
        life = self._lives.get(run.id)
        if life is None:
            return
        for entry in unpack(frame.data, frame.first_seq) if frame.entries else ():
            self._follow(run, life, entry, told=False)
        if frame.status != "running":
            self._end(run, life, frame.status, frame.error)

    def _follow(self, run: LiveRun, life: Life, entry: Entry, *, told: bool) -> None:
        if entry.kind in _BEGIN:
            life.waits[entry.key] = entry.at_ms
        elif entry.kind in _ANSWER:
            since_ms = life.waits.pop(entry.key, None)
            if not told and since_ms is not None:
                self._wait(run, life, entry, since_ms)
        elif entry.kind == Kind.REWIND and not told:
            life.span.add_event("durable.rewind", timestamp=entry.at_ms * 1_000_000)

    def _wait(self, run: LiveRun, life: Life, entry: Entry, since_ms: int) -> None:
        ident, _, name = entry.key.partition(" ")
        span = self._tracer.start_span(
            f"wait {name}", context=life.context, start_time=since_ms * 1_000_000,
            attributes={
                "durable.run.id": run.id, "durable.step.id": ident, "durable.wait.name": name,
                "durable.wait.ended": entry.kind.name.lower(),
            },
        )  # fmt: skip
        span.end(max(entry.at_ms, since_ms) * 1_000_000)

    def left(self, run: LiveRun) -> None:
        """See `Observer.left`."""
        life = self._lives.get(run.id)
        if life is not None:
            self._end(run, life, "left", None)

    def _end(self, run: LiveRun, life: Life, status: str, error: str | None) -> None:
        del self._lives[run.id]
        life.span.set_attribute("durable.run.status", status)
        if status in _BAD:
            # What an error says may be private; its type is not.
            life.span.set_status(Status(StatusCode.ERROR, (error or status).partition(":")[0]))
        life.span.end()


class StepSpan:
    """Implements `Attempt`: the span is the current one while the step's own code runs."""

    __slots__ = ("_attached", "_mine", "_step", "_token", "span")

    def __init__(self, span: Span, step: tuple[str, str]) -> None:
        self.span = span
        self._step = step
        self._token: Token[tuple[str, str] | None] | None = None
        self._attached: Token[Context] | None = None
        self._mine: Token[Attempt | None] | None = None

    def note(self, about: Mapping[str, str | int]) -> None:
        """See `Attempt.note`."""
        self.span.set_attributes(about)

    def enter(self) -> None:
        """See `Attempt.enter`."""
        self._token, self._mine = STEP.set(self._step), ATTEMPT.set(self)
        self._attached = context.attach(trace.set_span_in_context(self.span))

    def exit(self) -> None:
        """See `Attempt.exit`."""
        if self._attached is not None and self._token is not None and self._mine is not None:
            context.detach(self._attached)
            ATTEMPT.reset(self._mine)
            STEP.reset(self._token)
            self._attached = self._token = self._mine = None

    def end(self, failure: BaseException | None) -> None:
        """See `Attempt.end`."""
        self.exit()
        if failure is not None:
            self.span.record_exception(failure)
            self.span.set_status(Status(StatusCode.ERROR, type(failure).__name__))
        self.span.end()


def _headers(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the W3C headers of a recorded request."""
    return {k.lower(): v for k, v in meta.get("headers", ()) if k.lower() in _KEPT}


def _span_context(carrier: Mapping[str, str] | None) -> SpanContext | None:
    if not carrier:
        return None
    found = trace.get_current_span(_W3C.extract(carrier, context.Context())).get_span_context()
    return found if found.is_valid else None
