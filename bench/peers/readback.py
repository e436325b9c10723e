"""Reads the peers' stores after they were killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bench import postgres
from bench.readback import Expected, require


def dbos(directory: Path, expected: Expected) -> dict[str, int]:
    """Count workflows and steps (or stream entries) in DBOS's own tables."""
    runs_sql, whole_sql, table = _dbos_statements("", expected)
    with closing(sqlite3.connect(directory / "dbos.sqlite")) as db:
        runs = db.execute(runs_sql).fetchone()[0]
        whole = db.execute(whole_sql).fetchone()[0]
    return _dbos(runs, whole, table, expected)


def dbos_postgres(directory: Path, expected: Expected) -> dict[str, int]:
    """Count the same on PostgreSQL."""
    *statements, table = _dbos_statements("dbos.", expected)
    with postgres.running(directory) as url:
        runs, whole = (int(postgres.ask(url, sql)[0][0]) for sql in statements)
    return _dbos(runs, whole, table, expected)


def _dbos_statements(schema: str, expected: Expected) -> tuple[str, str, str]:
    name = "steps_workflow" if expected.kind == "steps" else "chat_workflow"
    table = "operation_outputs" if expected.kind == "steps" else "streams"
    runs = (f"select count(*) from {schema}workflow_status"
            f" where status = 'SUCCESS' and name = '{name}'")  # fmt: skip
    whole = (f"select count(*) from (select 1 from {schema}{table} group by workflow_uuid"
             f" having count(*) >= {expected.size}) whole")  # fmt: skip
    return runs, whole, table


def _dbos(runs: int, whole: int, table: str, expected: Expected) -> dict[str, int]:
    slack = 32 if expected.kind == "chat" else 0  # a stream's workflow ends after its last token
    require(runs + slack, expected.answers, "successful workflows")
    require(whole, expected.answers, f"workflows with {expected.size} recorded {table}")
    return {"runs": runs, "whole": whole}


def langgraph(directory: Path, expected: Expected, *, whole: bool) -> dict[str, int]:
    """Count threads and checkpoints; tokens are never stored by it, so there are none to find.

    `whole`: every step must have its checkpoint; else one a thread is what is promised.
    """
    with closing(sqlite3.connect(directory / "langgraph.sqlite")) as db:
        sql = "select count(*) from checkpoints group by thread_id"
        counts = [count for (count,) in db.execute(sql)]
    threads, checkpoints = len(counts), sum(counts)
    if whole and expected.kind == "steps":
        kept = sum(count >= expected.size for count in counts)
        require(kept, expected.answers, f"threads with {expected.size} checkpoints")
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


def absurd(directory: Path, expected: Expected) -> dict[str, int]:
    """Count completed tasks and their checkpoints in Absurd's own tables."""
    with postgres.running(directory) as url:
        sql = "select count(*) from absurd.t_bench where state = 'completed'"
        tasks = int(postgres.ask(url, sql)[0][0])
        sql = ("select count(*) from (select 1 from absurd.c_bench group by task_id"
               f" having count(*) >= {expected.size}) whole")  # fmt: skip
        whole = int(postgres.ask(url, sql)[0][0])
    require(tasks, expected.answers, "completed tasks")
    require(whole, expected.answers, f"tasks with {expected.size} checkpoints")
    return {"tasks": tasks, "whole": whole}
