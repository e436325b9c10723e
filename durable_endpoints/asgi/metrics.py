"""GET metrics: what the engine knows of itself, in Prometheus' text format.

Read when it is asked for: the hot path counts nothing for it but what it needs anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_STATUSES: Final = ("running", "suspended", "completed", "failed", "cancelled", "dead", "diverged")


class Metric(NamedTuple):
    """One metric: its samples by their labels."""

    name: str
    kind: str  # counter or gauge
    text: str
    samples: Mapping[tuple[tuple[str, str], ...], float]


def metrics_of(engine: Engine) -> list[Metric]:
    """Return an open engine's numbers, as they are now."""
    runs = list(engine.runs.values())
    statuses = Counter(str(run.record.status) for run in runs)
    behind = [run.seq - 1 - run.durable_seq for run in runs]
    log = engine.log
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
                sum(run.readers for run in runs)),
        _single("durable_commits_total", "counter", "Transactions written to the store.",
                log.commits),
        _single("durable_entries_behind", "gauge",
                "Journal entries appended and not yet durable (watermark lag).", sum(behind)),
        _single("durable_entries_behind_max", "gauge",
                "The largest number of entries that one run is ahead of the disk.",
                max(behind, default=0)),
        _single("durable_window_full", "gauge",
                "1 while the window of unpersisted entries is full, so that steps wait.",
                log.full),
        _single("durable_store_failed", "gauge", "1 once a write has failed: nothing is believed.",
                engine.store.failed is not None),
        _single("durable_draining", "gauge", "1 while no new runs are taken.", engine.draining),
    ]  # fmt: skip


def render(metrics: Iterable[Metric]) -> bytes:
    """Return metrics in the text format."""
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in metric.samples.items():
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _single(name: str, kind: str, text: str, value: float) -> Metric:
    return Metric(name, kind, text, {(): float(value)})


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
