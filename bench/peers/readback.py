"""Reads the peers' stores after they were killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bench.readback import Expected, nothing, require

__all__ = ["dbos", "langgraph", "nothing", "restate"]


def dbos(directory: Path, expected: Expected) -> dict[str, int]:
    """Count workflows and steps (or stream entries) in DBOS's own tables."""
    with closing(sqlite3.connect(directory / "dbos.sqlite")) as db:
        name = "steps_workflow" if expected.kind == "steps" else "chat_workflow"
        sql = "select count(*) from workflow_status where status = 'SUCCESS' and name = ?"
        runs = db.execute(sql, (name,)).fetchone()[0]
        table = "operation_outputs" if expected.kind == "steps" else "streams"
        sql = f"select 1 from {table} group by workflow_uuid having count(*) >= ?"
        whole = len(db.execute(sql, (expected.size,)).fetchall())
    slack = 32 if expected.kind == "chat" else 0  # a stream's workflow ends after its last token
    require(runs + slack, expected.answers, "successful workflows")
    require(whole, expected.answers, f"workflows with {expected.size} recorded {table}")
    return {"runs": runs, "whole": whole}


def langgraph(directory: Path, expected: Expected) -> dict[str, int]:
    """Count threads and checkpoints; tokens are never stored by it, so there are none to find."""
    with closing(sqlite3.connect(directory / "langgraph.sqlite")) as db:
        threads = db.execute("select count(distinct thread_id) from checkpoints").fetchone()[0]
        checkpoints = db.execute("select count(*) from checkpoints").fetchone()[0]
    slack = 32 if expected.kind == "chat" else 0
    require(threads + slack, expected.answers, "threads with a checkpoint")
    return {"threads": threads, "checkpoints": checkpoints}


def restate(directory: Path, _: Expected) -> dict[str, int]:
    """Its log is its own format: what can be seen from outside is that it is there, and how long.

    That no accepted run is lost is measured in the recovery workload.
    """
    files = [path for path in (directory / "restate-data").rglob("*") if path.is_file()]
    require(len(files), 1, "files of the server's log")
    return {"bytes": sum(path.stat().st_size for path in files)}
