"""From what a run did to rows on a time axis, ready for the template. Pure.

A few steps get a row each, branches indented below the moment they began. Many are drawn as one
row a name, each a histogram; zooming in gets back to single ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from durable_endpoints.console.digest import Digest, Mark, Span
from durable_endpoints.console.scale import Piece, Scale, silences
from durable_endpoints.console.words import duration, roughly, tick

ROWS_MAX: Final = 150
GROUPS_MAX: Final = 40
BINS: Final = 160
_HEIGHT: Final = 16
_WAITS: Final = ("timer", "wait")
# The journal's times are whole milliseconds.
_SAME_US: Final = 3000
_DIGITS: Final = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle: percents of the axis, and what it means."""

    x: float
    width: float
    style: str


@dataclass(slots=True)
class Row:
    """A row of the timeline. `seq` leads to the entry; `path` is a histogram."""

    label: str
    sort: str
    text: str
    depth: int = 0
    seq: int | None = None
    bars: list[Bar] = field(default_factory=list)
    path: str = ""
    failed_path: str = ""
    badges: list[str] = field(default_factory=list)
    failed: bool = False
    open: bool = False


@dataclass(slots=True)
class Drawing:
    """Everything that the timeline's template needs."""

    scale: Scale
    rows: list[Row]
    ticks: list[tuple[float, str]]
    folds: list[tuple[float, float, str]]
    marks: list[tuple[float, Mark]]
    events: str
    summed: bool
    steps: int
    waits: int
    zoomed: bool
    whole_us: int


def draw(digest: Digest, now_us: int | None, window: tuple[int, int] | None = None) -> Drawing:
    """Draw a run, or a window (in microseconds) of it; `now_us` if it has not ended."""
    whole = max(digest.last_us if now_us is None else max(now_us, digest.last_us), 1)
    begin, end = window or (0, whole)
    gaps = _silences(digest, whole)
    scale = Scale(begin, end, gaps, going=now_us is not None)
    seen = [span for span in digest.spans if span.begin_us <= end and _end(span, whole) >= begin]
    waits = sum(span.sort in _WAITS for span in seen)
    summed = len(seen) > ROWS_MAX
    rows = _groups(seen, scale, whole) if summed else _tree(seen, scale, whole)
    folds = [
        (100 * piece.left, 100 * (piece.right - piece.left), roughly(_ms(piece)))
        for piece in scale.pieces
        if piece.folded
    ]
    marks = [(100 * scale.at(m.at_us), m) for m in digest.marks if begin <= m.at_us <= end]
    return Drawing(
        scale, rows, _ticks(scale), folds, marks,
        histogram(_slots(digest.events_us, scale), _HEIGHT), summed, len(seen) - waits, waits,
        window is not None, whole,
    )  # fmt: skip


def zooms(drawing: Drawing) -> dict[str, tuple[int, int]]:
    """Return the windows that the zoom links lead to, by what they are called."""
    begin, end = drawing.scale.begin_us, drawing.scale.end_us
    width, whole = end - begin, drawing.whole_us
    found: dict[str, tuple[int, int]] = {}
    if width > 1000:
        found["in"] = (begin + width // 4, end - width // 4)
    if drawing.zoomed:
        found["out"] = (max(0, begin - width // 2), min(whole, end + width // 2))
        shift = width // 2
        if begin > 0:
            left = max(0, begin - shift)
            found["earlier"] = (left, left + width)
        if end < whole:
            right = min(whole, end + shift)
            found["later"] = (right - width, right)
    return found


def histogram(counts: Sequence[float], height: float, most: float | None = None) -> str:
    """Return the SVG path of a histogram, one unit wide a bar, drawn from the bottom."""
    top = max(counts, default=0) if most is None else most
    if top <= 0:
        return ""
    parts = []
    for index, count in enumerate(counts):
        if count:
            tall = max(1.5, height * min(1.0, count / top))
            parts.append(f"M{index} {height}v{-tall:.2f}h1v{tall:.2f}z")
    return "".join(parts)


def sparkline(values: Sequence[float], height: float) -> tuple[str, str]:
    """Return the SVG paths (line, area) of values over a width of one unit each."""
    if len(values) < 2:
        return "", ""
    top = max(max(values), 1e-9) * 1.08
    points = [f"{i} {height - height * v / top:.2f}" for i, v in enumerate(values)]
    line = "M" + "L".join(points)
    return line, f"{line}V{height}H0Z"


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Return the ticks with their labels; none where a fold has its own."""
    found = scale.ticks()
    step_us = min((b[1] - a[1] for a, b in pairwise(found)), default=scale.end_us)
    folds = [piece for piece in scale.pieces if piece.folded]
    return [
        (100 * at, tick(us, step_us))
        for at, us in found
        if not any(piece.left - 0.03 < at < piece.right + 0.03 for piece in folds)
    ]


def _tree(spans: Sequence[Span], scale: Scale, whole: int) -> list[Row]:
    """One row a step: a branch's steps stand together, indented, where the branch began."""
    lanes: dict[str, list[Span]] = {"": []}
    for span in spans:
        lanes.setdefault(span.lane, []).append(span)
    for lane in list(lanes):
        while lane:  # a branch whose caller has no step here still needs its place
            lane = _above(lane)
            lanes.setdefault(lane, [])
    rows: list[Row] = []
    _lane(lanes, "", 0, rows, scale, whole)
    return rows


def _lane(
    lanes: dict[str, list[Span]], lane: str, depth: int, rows: list[Row], scale: Scale, whole: int
) -> None:
    below = [name for name in lanes if name and _above(name) == lane]
    items: list[tuple[int, int, Span | str]] = [(s.begin_us, s.seq, s) for s in lanes[lane]]
    items += [(_first(lanes, name), -1, name) for name in below]
    for item in _ordered(items):
        if isinstance(item, Span):
            rows.append(_row(item, depth, scale, whole))
            continue
        if len(below) > 1 or len(lanes[item]) > 1:
            label = item.rstrip("/").rpartition("/")[2]
            rows.append(_branch(lanes, item, label, depth, scale, whole))
            _lane(lanes, item, depth + 1, rows, scale, whole)
        else:
            _lane(lanes, item, depth, rows, scale, whole)


def _ordered(items: list[tuple[int, int, Span | str]]) -> list[Span | str]:
    """Sort by time; branches that began at the same time, as far as is known, by their name."""
    found = sorted(items, key=lambda item: item[:2])
    begin = 0
    while begin < len(found):
        end = begin + 1
        if isinstance(found[begin][2], str):
            until = found[begin][0] + _SAME_US
            while end < len(found) and isinstance(found[end][2], str) and found[end][0] <= until:
                end += 1
            found[begin:end] = sorted(found[begin:end], key=lambda item: _natural(str(item[2])))
        begin = end
    return [item for _, _, item in found]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in _DIGITS.split(name)]


def _branch(
    lanes: dict[str, list[Span]], lane: str, label: str, depth: int, scale: Scale, whole: int
) -> Row:
    inner = [span for name, spans in lanes.items() if name.startswith(lane) for span in spans]
    begin, end = min(s.begin_us for s in inner), max(_end(s, whole) for s in inner)
    name, _, number = label.rpartition(".")
    bar = Bar(*_place(scale, begin, end), "branch")
    text = f"branch {label}: {duration((end - begin) / 1000)}"
    return Row(
        f"{name.rpartition('.')[2]} {int(number) + 1}" if number.isdigit() else label,
        "branch", text, depth, bars=[bar],
    )  # fmt: skip


def _row(span: Span, depth: int, scale: Scale, whole: int) -> Row:
    cut = " so far" if scale.going else ", cut off"
    end = _end(span, whole)
    style = "failed" if span.failed else span.sort
    took = duration((span.took_us or end - span.begin_us) / 1000)
    said = "still open" if span.end_us is None else "failed" if span.failed else "done"
    row = Row(
        span.name, span.sort,
        f"{span.name}, {span.sort}, begins at {duration(span.begin_us / 1000)}, {took}, {said}",
        depth, span.seq, failed=span.failed, open=span.end_us is None,
    )  # fmt: skip
    shown = f"{style} open" if row.open else style
    row.bars.append(Bar(*_place(scale, span.part_us, end), shown))
    row.bars += [Bar(*_place(scale, a, b), "try") for a, b in span.tries]
    row.badges.append(took if span.end_us is not None else f"{took}{cut}")
    if span.sort == "stream":
        row.badges.append(f"{span.items:,} items")
    if span.tries and not span.restarts:
        row.badges.append(f"attempt {len(span.tries) + 1}")
    if span.restarts:
        row.badges.append(
            f"recovered {span.restarts:,} times" if span.restarts > 1 else "recovered"
        )
    if span.note:
        row.badges.append(span.note)
    return row


def _groups(spans: Sequence[Span], scale: Scale, whole: int) -> list[Row]:
    """One row a name: how many of its steps ended when."""
    names: dict[str, list[Span]] = {}
    for span in spans:
        names.setdefault(span.name, []).append(span)
    order = sorted(names, key=lambda name: names[name][0].begin_us)
    rows = []
    for name in order[:GROUPS_MAX]:
        group = names[name]
        failed = [_end(span, whole) for span in group if span.failed]
        counts = _slots(sorted(_end(span, whole) for span in group), scale)
        took = sum(_end(span, whole) - span.begin_us for span in group) / 1000
        row = Row(name, group[0].sort, f"{name}: {len(group):,} steps, {duration(took)} in all")
        row.path = histogram(counts, _HEIGHT)
        row.failed_path = histogram(_slots(sorted(failed), scale), _HEIGHT, max(counts))
        row.badges = [f"{len(group):,} steps", duration(took)]
        row.badges += [f"{len(failed):,} failed"] if failed else []
        row.failed = bool(failed)
        rows.append(row)
    if len(order) > GROUPS_MAX:
        left = len(order) - GROUPS_MAX
        rows.append(Row(f"and {left:,} more names", "branch", "zoom in to see them"))
    return rows


def _slots(times_us: Sequence[int], scale: Scale) -> list[int]:
    """Count times, which are in order, by place on the axis."""
    edges = [scale.begin_us, *(scale.time(i / BINS) for i in range(1, BINS)), scale.end_us + 1]
    below = [bisect_left(times_us, edge) for edge in edges]
    return [high - low for low, high in pairwise(below)]


def _silences(digest: Digest, whole: int) -> list[tuple[int, int]]:
    """Return when nothing was at work; a wait is a silence, an open step is not."""
    busy = []
    for span in digest.spans:
        busy += span.tries
        end = span.part_us if span.sort in _WAITS else _end(span, whole)
        busy.append((span.part_us, end))
    busy += zip(digest.events_us, digest.events_us, strict=True)
    busy += [(mark.at_us, mark.at_us) for mark in digest.marks]
    return silences(busy, whole)


def _first(lanes: dict[str, list[Span]], lane: str) -> int:
    found = [s.begin_us for name, spans in lanes.items() if name.startswith(lane) for s in spans]
    return min(found, default=0)


def _above(lane: str) -> str:
    return lane[: lane.rstrip("/").rfind("/") + 1]


def _end(span: Span, whole: int) -> int:
    return whole if span.end_us is None else span.end_us


def _place(scale: Scale, begin: int, end: int) -> tuple[float, float]:
    left = 100 * scale.at(begin)
    return min(left, 99.6), max(0.4, 100 * scale.at(end) - left)


def _ms(piece: Piece) -> float:
    return (piece.end_us - piece.begin_us) / 1000
