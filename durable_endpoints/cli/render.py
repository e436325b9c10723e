"""How runs look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from durable_endpoints.cli.timeline import Span, Timeline, milliseconds

COLOURS: Final = {
    "running": "cyan",
    "suspended": "blue",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "dead": "bold red",
    "diverged": "magenta",
}
# What a model or an upstream wrote must not steer the terminal, nor turn a line around.
_KEPT: Final = "\n\t"
BAR: Final = 36
ARGS: Final = 24
_TICKS: Final = " ▁▂▃▄▅▆▇█"


def safe(text: object) -> str:
    """A text from elsewhere, fit for a terminal."""
    shown = (c if c.isprintable() or c in _KEPT else "\ufffd" for c in str(text))
    return "".join(shown)


def line(text: object) -> str:
    """A text from elsewhere, on one line."""
    return " ".join(safe(text).split())


def status(name: str) -> Text:
    """A run's status, in its colour."""
    return Text(f"● {name}", style=COLOURS.get(name, ""))


def duration(milliseconds_: float) -> str:
    """A length of time, as short as it can be said."""
    if milliseconds_ < 1:
        return f"{milliseconds_ * 1000:.0f} µs"
    if milliseconds_ < 1000:
        return f"{milliseconds_:.0f} ms"
    seconds = milliseconds_ / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def waits(run: Mapping[str, Any], now_ms: float) -> str:
    """What a suspended run waits for, and how long at most."""
    waiting = run.get("waiting") or ()
    named = ", ".join(line(f"{wait['kind']} {wait['name']}") for wait in waiting)
    wake = run.get("wake_at")
    if wake is None:
        return named
    left_ms = milliseconds(wake) - now_ms
    return f"{named}, {duration(left_ms)} left" if left_ms > 0 else f"{named}, due"


def labels(run: Mapping[str, Any], before: str = "") -> str:
    """A run's labels, on one line."""
    found = ", ".join(line(f"{name}:{value}") for name, value in (run.get("labels") or {}).items())
    return before + found if found else ""


def runs_table(runs: Sequence[Mapping[str, Any]], now: datetime | None = None) -> Table:
    """Runs, newest first; what they wait for, if any does."""
    now_ms = (now or datetime.now(UTC)).timestamp() * 1000
    some_wait = any(run.get("waiting") for run in runs)
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("endpoint", overflow="fold", style="bold")
    table.add_column("status", no_wrap=True)
    if some_wait:
        table.add_column("waits for", overflow="fold")
    table.add_column("events", justify="right")
    table.add_column("attempts", justify="right")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("started", justify="right", no_wrap=True, style="dim")
    for run in runs:
        created = milliseconds(run["created_at"])
        attempts = int(run["attempts"])
        table.add_row(
            str(run["id"]),
            Text.assemble(line(run["name"]), (labels(run, "\n"), "dim not bold")),
            status(run["status"]),
            *([Text(waits(run, now_ms))] if some_wait else ()),
            f"{run['events']:,}",
            Text(str(attempts), style="yellow" if attempts > 1 else ""),
            duration(milliseconds(run["updated_at"]) - created),
            f"{duration(max(0.0, now_ms - created))} ago",
        )
    return table


def dead_table(runs: Sequence[Mapping[str, Any]], now: datetime | None = None) -> Table:
    """Dead runs, newest first, and what they died of."""
    now_ms = (now or datetime.now(UTC)).timestamp() * 1000
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("endpoint", overflow="fold", style="bold")
    table.add_column("died of", overflow="fold", style="red")
    table.add_column("entries", justify="right")
    table.add_column("", justify="right", no_wrap=True, style="dim")
    for run in runs:
        ago = max(0.0, now_ms - milliseconds(run["updated_at"]))
        table.add_row(
            str(run["id"]), Text(line(run["name"])), Text(line(run["error"] or "")),
            f"{run['entries']:,}", f"{duration(ago)} ago",
        )  # fmt: skip
    return table


def approvals_table(asked: Sequence[Mapping[str, Any]], now: datetime | None = None) -> Table:
    """What persons are asked, the oldest question first."""
    now_ms = (now or datetime.now(UTC)).timestamp() * 1000
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("name", overflow="fold", style="bold")
    table.add_column("summary", overflow="fold")
    table.add_column("asked", justify="right", no_wrap=True, style="dim")
    table.add_column("left", justify="right", no_wrap=True)
    for one in asked:
        since = max(0.0, now_ms - milliseconds(one["since"]))
        left = "" if one["until"] is None else duration(milliseconds(one["until"]) - now_ms)
        table.add_row(
            str(one["run_id"]), str(one["kind"]), Text(line(one["name"])),
            Text(safe(one["summary"] or "").strip()), f"{duration(since)} ago", left,
        )  # fmt: skip
    return table


def run_view(
    run: Mapping[str, Any], timeline: Timeline, now: datetime | None = None,
    usage: Mapping[str, Any] | None = None,
) -> RenderableType:  # fmt: skip
    """One run: its facts, and its steps over time."""
    now_ms = (now or datetime.now(UTC)).timestamp() * 1000
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("run", str(run["id"]))
    facts.add_row("endpoint", Text(line(run["name"]), style="bold"))
    facts.add_row("status", status(run["status"]))
    if run.get("waiting"):
        facts.add_row("waits for", Text(waits(run, now_ms), style="bold"))
    if run.get("wake_at"):
        facts.add_row("wakes", str(run["wake_at"]))
    if run["error"]:
        facts.add_row("error", Text(safe(run["error"]), style="red"))
    if run.get("parent"):
        facts.add_row("parent", str(run["parent"]))
    if run.get("labels"):
        facts.add_row("labels", Text(labels(run)))
    facts.add_row("version", Text(line(run["version"])))
    facts.add_row("attempts", str(run["attempts"]))
    facts.add_row("journal", f"{run['entries']:,} entries, {run['events']:,} events")
    began, ended = str(run["created_at"]), str(run["updated_at"])
    took = duration(milliseconds(ended) - milliseconds(began))
    facts.add_row("time", f"{began}, for {took}")
    parts: list[RenderableType] = [Panel(facts, border_style="dim", expand=False)]
    if timeline.spans or timeline.events_ms:
        parts.append(_steps(timeline))
    if usage is not None and usage["models"]:
        parts.append(_tokens(usage))
    if timeline.rewinds:
        parts.append(Text(f"{timeline.rewinds} rewind(s): some events were taken back.", "yellow"))
    return Group(*parts)


def _steps(timeline: Timeline) -> Table:
    total = max(timeline.end_ms, 0.001)
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("step", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("at", justify="right", no_wrap=True, style="dim")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column(f"0 … {duration(total)}", no_wrap=True, min_width=BAR)
    for span in timeline.spans:
        end = total if span.end_ms is None else span.end_ms
        took = "…" if span.end_ms is None else duration(end - span.start_ms)
        table.add_row(
            _call(span),
            _notes(span),
            f"+{duration(span.start_ms)}",
            took,
            _bar(span.start_ms / total, end / total, _colour(span)),
        )
    if timeline.events_ms:
        table.add_row(
            Text("events", style="dim"),
            Text(f"{len(timeline.events_ms):,}", style="dim"),
            f"+{duration(timeline.events_ms[0])}",
            duration(timeline.events_ms[-1] - timeline.events_ms[0]),
            Text(density([ms / total for ms in timeline.events_ms]), style="green"),
        )
    return table


def _tokens(usage: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("model", overflow="fold", style="bold")
    for name in ("calls", "input", "of it cached", "output"):
        table.add_column(name, justify="right")
    priced = usage["total"]["cost"] is not None
    if priced:
        table.add_column("cost", justify="right")
    for model, used in usage["models"].items():
        cost = [] if not priced else ["no price" if used["cost"] is None else f"{used['cost']:.6f}"]
        table.add_row(
            Text(line(model)), f"{used['calls']:,}", f"{used['input']:,}", f"{used['cached']:,}",
            f"{used['output']:,}", *cost,
        )  # fmt: skip
    if usage["unknown"]:
        table.caption = f"{usage['unknown']:,} answers said nothing of tokens"
    return table


def _call(span: Span) -> Text:
    """A step's name, and the beginning of its arguments."""
    if span.waited:
        return Text(line(span.name), style="italic")
    args = line(span.args.removeprefix("[").removesuffix("]"))
    shown = f"({args[:ARGS]}…)" if len(args) > ARGS else f"({args})"
    return Text.assemble((line(span.name), "red" if span.failed else "bold"), (shown, "dim"))


def _notes(span: Span) -> Text:
    notes = [f"{span.items} items"] if span.streamed else []
    if span.waited:
        notes.append("waits" if span.end_ms is None else "waited")
    if span.restarts:
        notes.append(f"{span.restarts + 1} tries")
    if span.failed:
        notes.append("failed")
    return Text(", ".join(notes), style="dim")


def _colour(span: Span) -> str:
    if span.failed:
        return "red"
    if span.waited:
        return "bright_black"
    if span.end_ms is None:
        return "cyan"
    return "magenta" if span.streamed else "blue"


def _bar(start: float, end: float, style: str) -> Text:
    left = min(BAR - 1, int(start * BAR))
    width = max(1, min(BAR - left, round((end - start) * BAR)))
    return Text(" " * left + "━" * width, style=style)


def density(places: Sequence[float]) -> str:
    """How many of `places` (each from 0 to 1) fall on each column of the bar, as a sparkline."""
    counts = [0] * BAR
    for place in places:
        counts[min(BAR - 1, int(place * BAR))] += 1
    most = max(counts) or 1
    return "".join(_TICKS[-(-count * (len(_TICKS) - 1) // most)] for count in counts)
