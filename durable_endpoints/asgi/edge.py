"""What a node whose own disk is the watermark says of what only that disk has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from durable_endpoints.asgi.fields import iso

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine
    from durable_endpoints.engine.run import LiveRun
    from durable_endpoints.stores.nodes import Edge


def edge_of(engine: Engine) -> Edge | None:
    """Return the engine's node if it is one at the edge."""
    return engine.remote.edge if engine.remote is not None else None


async def run_risk(engine: Engine, run: LiveRun) -> dict[str, Any]:
    """Return the field `unshipped` of a run: what the loss of its node's disk would lose.

    A node of the centre passes on what that node said last, of all its runs.
    """
    remote = engine.remote
    if remote is None or (run.ended and remote.edge is None):
        return {}
    said = await remote.nodes.unshipped(run.id)
    if said is None:
        return {}
    lag = orjson.loads(said)
    since = None if lag["since_ms"] is None else iso(lag["since_ms"])
    fields = {"entries": lag["entries"], "bytes": lag["bytes"], "since": since}
    return {"unshipped": {**fields, "at": iso(lag["at_ms"])}}


def node_risk(engine: Engine) -> dict[str, Any]:
    """Return what health says of the centre, and of what the loss of this disk would lose."""
    edge = edge_of(engine)
    if edge is None:
        return {}
    lag = edge.lag()
    since = None if lag.since_ms is None else iso(lag.since_ms)
    left = {"runs": lag.runs, "entries": lag.entries, "bytes": lag.bytes, "since": since}
    return {"centre": "ok" if edge.trouble is None else "away", "unshipped": left}


def numbers(engine: Engine) -> list[tuple[str, str, str, float]]:
    """Return the metrics of a node at the edge: name, kind, text, value."""
    edge = edge_of(engine)
    if edge is None:
        return []
    lag, tally = edge.lag(), edge.tally
    age_ms = 0 if lag.since_ms is None else max(0, engine.clock.now_ms() - lag.since_ms)
    gauge = "gauge"
    return [
        ("durable_edge_centre_away", gauge, "1 while the centre does not answer.",
         float(edge.trouble is not None)),
        ("durable_edge_unshipped_runs", gauge,
         "Runs of which something is on this node's disk only.", lag.runs),
        ("durable_edge_unshipped_entries", gauge,
         "Journal entries that the loss of this node's disk would lose.", lag.entries),
        ("durable_edge_unshipped_bytes", gauge,
         "Bytes that the loss of this node's disk would lose.", lag.bytes),
        ("durable_edge_unshipped_seconds", gauge, "Age of the oldest of them.", age_ms / 1000),
        ("durable_edge_refused_runs", gauge,
         "Runs that stay on this disk only, because the centre does not take them.",
         tally.refused_runs),
        ("durable_edge_voided_runs_total", "counter",
         "Runs that went on elsewhere after the lease was over, without all that was here.",
         tally.voided_runs),
        ("durable_edge_voided_entries_total", "counter",
         "Journal entries of those runs that were here only.", tally.voided_entries),
    ]  # fmt: skip
