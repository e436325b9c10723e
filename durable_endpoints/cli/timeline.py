"""From a run's journal to the spans of its steps. Pure: no I/O, no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(slots=True)
class Span:
    """One step as it happened; times in milliseconds since the run began, `end_ms` None if open."""

    name: str
    args: str
    start_ms: float
    end_ms: float | None = None
    items: int = 0
    streamed: bool = False
    failed: bool = False
    restarts: int = 0
    waited: bool = False  # a timer, or a wait for somebody


@dataclass(slots=True)
class Timeline:
    """What a run did, and when. `events_ms` are the times of its events, first to last."""

    spans: list[Span]
    events_ms: list[float]
    end_ms: float
    rewinds: int = 0


def milliseconds(iso: str) -> float:
    """Milliseconds since 1970 of an ISO 8601 time."""
    return datetime.fromisoformat(iso).timestamp() * 1000


def read(entries: Iterable[Mapping[str, Any]]) -> Timeline:
    """Build the timeline of a journal as `GET runs/{id}/journal` returns it.

    A step's entry is written when it is over and says how long it took; a stream step has one
    entry at its beginning, one an item, and one at its end; an effect has one at its beginning,
    as a wait has, and whatever is tried again one for every failed attempt.
    """
    timeline = Timeline([], [], 0.0)
    spans: dict[str, Span] = {}
    began: float | None = None
    for entry in entries:
        at = milliseconds(entry["at"])
        if began is None:
            began = at
        at -= began
        timeline.end_ms = max(timeline.end_ms, at)
        _take(timeline, spans, entry, at)
    timeline.spans = sorted(spans.values(), key=lambda span: span.start_ms)
    return timeline


def _take(timeline: Timeline, spans: dict[str, Span], entry: Mapping[str, Any], at: float) -> None:
    kind, key = str(entry["kind"]), str(entry["key"])
    name = key.partition(" ")[2] or key
    args = str(entry["args"])
    if kind in ("head", "chunk", "emit"):
        timeline.events_ms.append(at)
    elif kind == "rewind":
        timeline.rewinds += 1
    elif kind == "stream":
        span = spans.setdefault(key, Span(name, args, at, streamed=True))
        span.streamed = True
    elif kind == "item" and key in spans:
        spans[key].items += 1
    elif kind == "reset" and key in spans:
        spans[key].items, spans[key].restarts = 0, spans[key].restarts + 1
    elif kind in ("wait", "timer"):
        spans.setdefault(key, Span(name, args, at, waited=True))
    elif kind in ("received", "fired") and key in spans:
        spans[key].end_ms = at
    elif kind in ("intent", "attempt"):
        span = spans.setdefault(key, Span(name, args, at))
        span.args = span.args or args
        span.restarts += kind == "attempt"
    elif kind in ("step", "step_failed", "stream_end"):
        took_ms = float(entry["took_us"] or 0) / 1000
        span = spans.setdefault(key, Span(name, args, max(0.0, at - took_ms)))
        span.end_ms, span.failed = at, kind == "step_failed"
