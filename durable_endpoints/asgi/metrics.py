"""GET metrics: what the engine knows of itself, in Prometheus' text format.

Read when it is asked for; what is counted on the way is in `engine.meters`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from durable_endpoints.asgi import edge
from durable_endpoints.errors import StoreAway
from durable_endpoints.limits import RUNS_COUNTED_MAX

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine
    from durable_endpoints.engine.meters import Histogram
    from durable_endpoints.records import Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# From 16 µs to 67 s; what is faster or slower is in the outer buckets.
_MICROSECONDS: Final = range(4, 27)
_STATUSES: Final = ("running", "suspended", "completed", "failed", "cancelled", "dead", "diverged")


class Metric(NamedTuple):
    """One metric: its samples by their labels."""

    name: str
    kind: str  # counter or gauge
    text: str
    samples: Mapping[tuple[tuple[str, str], ...], float]


class Curve(NamedTuple):
    """A histogram: a bucket for each power of two in `sizes`, in units of which `unit` make 1."""

    name: str
    text: str
    histogram: Histogram
    sizes: range
    unit: int


async def gathered(engine: Engine) -> list[Metric | Curve]:
    """Return an open engine's numbers, and its store's; without those while that is away."""
    try:
        stored = await engine.store.count()
    except StoreAway:
        stored = {}
    return metrics_of(engine, stored)


def metrics_of(
    engine: Engine, stored: Mapping[Status, int] = MappingProxyType({})
) -> list[Metric | Curve]:
    """Return an open engine's numbers, as they are now; `stored` is what its store counts."""
    runs = list(engine.runs.values())
    statuses = Counter(str(run.record.status) for run in runs)
    behind = [run.seq - 1 - run.durable_seq for run in runs]
    log = engine.log
    meters = log.meters
    meters.sort()
    return [
        Metric(
            "durable_runs_live", "gauge", "Runs that this process has in memory, by status.",
            {(("status", status),): statuses[status] for status in _STATUSES},
        ),
        _single("durable_runs_replaying", "gauge", "Runs that are going over their journal again.",
                sum(run.replay is not None for run in runs)),
        _single("durable_runs_recovering", "gauge",
                "Runs that went on after a crash and have not got further yet.",
                sum(run.record.attempts > 0 and not run.progressed for run in runs)),
        _single("durable_readers", "gauge", "Connections that follow a run.",
                meters.readers),
        _single("durable_commits_total", "counter", "Transactions written to the store.",
                log.commits),
        _single("durable_entries_behind", "gauge",
                "Journal entries appended and not yet durable (watermark lag).", sum(behind)),
        _single("durable_entries_behind_max", "gauge",
                "The largest number of entries that one run is ahead of the disk.",
                max(behind, default=0)),
        _single("durable_lag_seconds", "gauge",
                "Since when the oldest entry that is not durable has been waiting.", log.lag_s),
        Curve("durable_commit_seconds", "How long transactions took to become durable.",
              meters.commits_us, _MICROSECONDS, 1_000_000),
        Curve("durable_batch_entries", "Journal entries of a transaction.",
              meters.batches, range(15), 1),
        Curve("durable_step_seconds", "How long steps took that ran: all but stream steps.",
              meters.steps_us, _MICROSECONDS, 1_000_000),
        _single("durable_step_retries_total", "counter",
                "Attempts of steps that failed and were followed by another one.",
                meters.retries),
        Metric(
            "durable_runs_stored", "gauge",
            f"Unfinished runs in the store, by status: {RUNS_COUNTED_MAX} are that or more.",
            {(("status", status),): count for status, count in stored.items()},
        ),
        _single("durable_window_full", "gauge",
                "1 while the window of unpersisted entries is full, so that steps wait.",
                log.full),
        _single("durable_store_failed", "gauge", "1 once a write has failed: nothing is believed.",
                engine.store.failed is not None),
        _single("durable_draining", "gauge", "1 while no new runs are taken.", engine.draining),
        *(_single(*number) for number in edge.numbers(engine)),
    ]  # fmt: skip


def render(metrics: Iterable[Metric | Curve]) -> bytes:
    """Return metrics in the text format."""
    lines: list[str] = []
    for metric in metrics:
        if isinstance(metric, Curve):
            lines += _buckets(metric)
            continue
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in metric.samples.items():
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _buckets(curve: Curve) -> Iterable[str]:
    yield f"# HELP {curve.name} {curve.text}"
    yield f"# TYPE {curve.name} histogram"
    below = accumulate(curve.histogram.counts)
    for size, count in enumerate(below):
        if size in curve.sizes:  # whole numbers: below 2^n is at most 2^n - 1
            most = ((1 << size) - (curve.unit == 1)) / curve.unit
            yield f'{curve.name}_bucket{{le="{most:.6f}"}} {count}'.replace(".000000", "")
    total = curve.histogram.count
    yield f'{curve.name}_bucket{{le="+Inf"}} {total}'
    yield f"{curve.name}_sum {_number(curve.histogram.total / curve.unit)}"
    yield f"{curve.name}_count {total}"


def _single(name: str, kind: str, text: str, value: float) -> Metric:
    return Metric(name, kind, text, {(): float(value)})


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
