"""Pages over many runs: the list, what waits for people, health, and what was done here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from durable_endpoints.console import drawing
from durable_endpoints.console.actions import BY_NAME, actions_for_all
from durable_endpoints.console.sampler import EVERY_S, file_size
from durable_endpoints.console.search import AGES, STATUSES, Asked, search
from durable_endpoints.limits import LIST_ROWS_MAX, WINDOW_ENTRIES_MAX
from durable_endpoints.states import TERMINAL
from durable_endpoints.stores.protocol import WaitQuery

if TYPE_CHECKING:
    from starlette.responses import Response

    from durable_endpoints.console.search import Found
    from durable_endpoints.console.visit import Visit

_CHART_HEIGHT: Final = 40
# Charts of samples: title, note before the time they span, field, unit.
_SAMPLED: Final = (
    ("Commits", "a second, ", "commits_s", "n"),
    ("A commit takes", "mean, ", "commit_ms", "ms"),
    ("Slowest 1 % of commits", "", "slow_ms", "ms"),
    ("Entries of a commit", "mean, ", "batch", "n"),
    ("Not yet durable", "entries, ", "behind", "n"),
    ("Durable late by", "", "lag_ms", "ms"),
    ("Retries", "a second, ", "retries_s", "n"),
    ("Runs in memory", "", "live", "n"),
    ("Readers", "", "readers", "n"),
    ("Event loop late by", "", "late_ms", "ms"),
    ("Log file", "", "log_bytes", "bytes"),
)
_SETTINGS_MS: Final = 30_000
# How often the list asks again, in seconds: the second, when all of it is new by then, and nobody
# could read it anyway.
LOOK_S: Final = 2
LOOK_BUSY_S: Final = 5


async def runs(visit: Visit) -> Response:
    """The list of runs, newest first."""
    asked = Asked.of(visit.request.query_params)
    await visit.console.tally.look()
    found = await search(visit.store, asked, visit.now_ms)
    values: dict[str, Any] = {
        "asked": asked, "found": found, "tally": visit.console.tally, "statuses": STATUSES,
        "ended": TERMINAL, "live": not asked.before, "every_s": _every_s(found, visit.now_ms),
        "bulk": actions_for_all(asked.status) if visit.visitor.may_act else [],
    }  # fmt: skip
    if visit.partial:
        return visit.page("runs_live.html", **values)
    done = BY_NAME.get(visit.request.query_params.get("done", ""))
    return visit.page("runs.html", tab="runs", ages=AGES, done=done, **values)


def _every_s(found: Found, now_ms: int) -> int:
    if found.older is None or not found.runs:
        return LOOK_S
    return LOOK_BUSY_S if now_ms - found.runs[-1].created_at_ms < LOOK_S * 1000 else LOOK_S


async def waiting(visit: Visit) -> Response:
    """Everything that waits for somebody outside, the oldest first."""
    waits = await visit.store.waits(WaitQuery(limit=LIST_ROWS_MAX))
    people = [wait for wait in waits if wait.kind in ("approval", "decision")]
    others = [wait for wait in waits if wait.kind not in ("approval", "decision")]
    page = "waiting_live.html" if visit.partial else "waiting.html"
    return visit.page(page, tab="waiting", people=people, others=others, answers=visit.answers)


async def activity(visit: Visit) -> Response:
    """What was done through this console."""
    return visit.page("activity.html", tab="activity", deeds=visit.console.audit.deeds)


async def health(visit: Visit) -> Response:
    """How the engine and its store are."""
    console = visit.console
    await console.tally.look()
    if not console.sampler.samples:
        console.sampler.take()
    engine = visit.engine
    values: dict[str, Any] = {
        "engine": engine, "charts": _charts(visit), "settings": await _settings(visit),
        "file_bytes": file_size(engine), "log_bytes": file_size(engine, "-wal"),
        "window_max": WINDOW_ENTRIES_MAX, "tally": console.tally, "statuses": STATUSES,
        "ended": TERMINAL, "nodes": await _nodes(visit),
    }  # fmt: skip
    page = "health_live.html" if visit.partial else "health.html"
    return visit.page(page, tab="health", **values)


def _charts(visit: Visit) -> list[dict[str, Any]]:
    samples = list(visit.console.sampler.samples)
    tally = visit.console.tally
    began, failed = tally.series("began"), tally.series("failed")
    minutes = len(samples) * EVERY_S / 60
    span = f"last {max(1, round(minutes))} min" if samples else "from now on"
    return [
        _chart("Runs begun", "a minute, last hour", began, began[-2], "n"),
        _chart("Runs failed", "a minute, last hour", failed, failed[-2], "n", alarm=True),
        *(
            _chart(title, f"{note}{span}", values := [getattr(s, name) for s in samples],
                   values[-1] if values else 0, unit)
            for title, note, name, unit in _SAMPLED
        ),
    ]  # fmt: skip


def _chart(
    title: str, note: str, values: list[Any], now: float, unit: str, *, alarm: bool = False
) -> dict[str, Any]:
    line, area = drawing.sparkline(values, _CHART_HEIGHT)
    return {
        "title": title, "note": note, "now": now, "unit": unit, "most": max(values, default=0),
        "line": line, "area": area, "width": max(1, len(values) - 1), "height": _CHART_HEIGHT,
        "alarm": alarm and max(values, default=0) > 0,
    }  # fmt: skip


async def _settings(visit: Visit) -> dict[str, Any]:
    """Return what the store says of itself, if it does; counting its rows takes a while."""
    console = visit.console
    describe = getattr(visit.store, "settings", None)
    if describe is not None and visit.now_ms >= console.settings_until_ms:
        console.settings_until_ms = visit.now_ms + _SETTINGS_MS
        console.settings = await describe()
    return console.settings


async def _nodes(visit: Visit) -> Sequence[Mapping[str, Any]]:
    """Return the nodes on the store, if it is for many."""
    fleet = getattr(visit.store, "fleet", None)
    nodes: Sequence[Mapping[str, Any]] = await fleet() if fleet is not None else ()
    return nodes
