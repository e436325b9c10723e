"""Bars as SVG: no library, no script, legible on a light and on a dark page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.stats import number

_WIDTH, _LABEL, _BAR, _GAP, _TITLE = 860, 190, 18, 8, 46
_COLORS = {"bare": "#8a8f98", "durable": "#2f6fdb", "strict": "#7aa5ee"}
_OTHER = "#c9883a"
_LESS, _MORE, _RATIO = "less is better", "more is better", "of_bare"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-weight:600}.n{fill:#57606a}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#9aa4af}}"
)


@dataclass(frozen=True)
class Panel:
    """One group of bars: title, and a bar a contender with its least and most."""

    title: str
    better: str
    unit: str
    bars: list[tuple[str, str, dict[str, float]]]  # key, label, spread


def panels(result: dict[str, Any]) -> list[Panel]:
    """Return what is worth a picture in an overhead result."""
    wanted = [
        ("20 steps, one client: time added to the bare app", _LESS, "µs", "p50_us", "added", 1.0),
        ("20 steps, 32 clients: of the bare app's runs/s", _MORE, "%", "many_per_s", _RATIO, 100.0),
        ("500 SSE tokens: of the bare app's tokens/s", _MORE, "%", "tokens_per_s", _RATIO, 100.0),
    ]
    found = [_panel(result, result["summary"], *w) for w in wanted]
    for delay, slow in result.get("slow", {}).items():
        title = f"20 steps, every sync {delay} ms slower: p50"
        found.append(_panel(result, slow["summary"], title, _LESS, "ms", "p50_us", "value", 1e-3))
    return [panel for panel in found if panel.bars]


def _panel(
    result: dict[str, Any], summary: dict[str, Any], title: str, better: str, unit: str,
    figure: str, part: str, scale: float,
) -> Panel:  # fmt: skip
    bars = []
    for key, contender in result["contenders"].items():
        spread = summary.get(key, {}).get(figure, {}).get(part)
        if spread is not None and not (part == "added" and key == "bare"):
            scaled = {name: max(0.0, value * scale) for name, value in spread.items()}
            bars.append((key, contender["title"], scaled))
    return Panel(title, better, unit, bars)


def _position(value: float, top: float, *, log: bool) -> float:
    """Return where a value lies, 0 to 1. On a log scale the bars span three decades at most."""
    if not log:
        return value / top
    low = top / 10_000
    return max(0.0, math.log10(max(value, low) / low) / 4)


def _draw(panel: Panel, y: float) -> tuple[list[str], float]:
    top = max(spread["max"] for _, _, spread in panel.bars) or 1.0
    least = min(spread["median"] for _, _, spread in panel.bars)
    log = top > 60 * max(least, top / 1e6)
    scale = "log scale, " if log else ""
    span = _WIDTH - _LABEL - 130
    parts = [
        f'<text class="t" x="0" y="{y + 16}">{escape(panel.title)}</text>',
        f'<text class="n" x="{_WIDTH}" y="{y + 16}" text-anchor="end">{scale}{panel.better}</text>',
    ]
    y += _TITLE - 16
    for key, label, spread in panel.bars:
        long = max(1.0, span * _position(spread["median"], top, log=log))
        low, high = (_LABEL + span * _position(spread[end], top, log=log) for end in ("min", "max"))
        middle, color = y + _BAR / 2, _COLORS.get(key, _OTHER)
        parts += [
            f'<text x="{_LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{long:.1f}" height="{_BAR}" fill="{color}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#57606a" stroke-width="2"/>',
            f'<text class="n" x="{max(high, _LABEL + long) + 8:.1f}" y="{y + 14}">'
            f"{number(spread['median'])} {panel.unit}</text>",
        ]
        y += _BAR + _GAP
    return parts, y + 14


def svg(result: dict[str, Any]) -> str:
    """Return the chart of an overhead result; empty if there is nothing to draw."""
    parts: list[str] = []
    y = 4.0
    for panel in panels(result):
        drawn, y = _draw(panel, y)
        parts += drawn
    if not parts:
        return ""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" role="img">\n'
        f"<title>What durability costs</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
    )


def write(result: dict[str, Any], path: Path) -> bool:
    """Write the chart; False if there was nothing to draw."""
    drawn = svg(result)
    if drawn:
        path.write_text(drawn)
    return bool(drawn)
