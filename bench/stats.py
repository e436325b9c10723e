"""Medians, spreads and ratios. A ratio is always taken inside one round, then summed up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Spread = dict[str, float]


def number(value: float) -> str:
    """Return a figure with three digits that mean something."""
    if value == int(value):
        return f"{value:,.0f}"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile (0 to 1), nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, math.ceil(q * len(ranked)) - 1))]


def spread(values: Sequence[float]) -> Spread:
    """Return median, minimum and maximum over rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def mean(values: Sequence[float]) -> Spread:
    """Return the mean over two rounds or more, and the margin of 19 times out of 20."""
    margin = 2 * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "margin": margin}


def over_rounds(rounds: list[dict[str, dict[str, Any]]], contender: str, key: str) -> Spread | None:
    """Return the spread of a figure; None if this contender does not have it."""
    found = [r[contender][key] for r in rounds if key in r.get(contender, {})]
    return spread(found) if found else None


def ratios(rounds: list[dict[str, dict[str, Any]]], contender: str, key: str) -> Spread | None:
    """Return the spread of a figure divided by the bare app's in the same round."""
    found = [
        r[contender][key] / r["bare"][key]
        for r in rounds
        if key in r.get(contender, {}) and r.get("bare", {}).get(key)
    ]
    return spread(found) if found else None


def differences(rounds: list[dict[str, dict[str, Any]]], contender: str, key: str) -> Spread | None:
    """Return the spread of a figure less the bare app's in the same round."""
    found = [
        r[contender][key] - r["bare"][key]
        for r in rounds
        if key in r.get(contender, {}) and key in r.get("bare", {})
    ]
    return spread(found) if found else None
