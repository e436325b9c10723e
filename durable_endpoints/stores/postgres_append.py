"""Writing a batch to PostgreSQL: one statement; and what became of one that was not answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from durable_endpoints.limits import POSTGRES_ANSWER_S
from durable_endpoints.records import Frame
from durable_endpoints.stores import postgres_rows as rows
from durable_endpoints.stores.postgres_link import Connection, Link, Trouble, sql

logger = logging.getLogger("durable_endpoints")

_EXCLUSIVE: Final = "runs_exclusive"
# How long a former connection may take to end: half of what an answer may take.
_END_MS: Final = int(POSTGRES_ANSWER_S * 500)


async def write(connection: Connection, batch: Sequence[Frame], node: str) -> frozenset[str]:
    """Write a batch in one statement, which is a transaction; return the runs that are fenced.

    A batch that holds a value which PostgreSQL refuses is written run by run: the run with the
    value is fenced, its neighbours are not.
    """
    try:
        return await _write(connection, batch, node)
    except Exception as error:
        if Trouble.of(error) is not Trouble.DATA:
            raise
        if len(batch) == 1:
            run_id = batch[0].run_id
            if getattr(error, "constraint_name", None) == _EXCLUSIVE:
                logger.info("run %s cannot come back beside another one of its key", run_id)
            else:
                logger.exception("run %s holds what cannot be stored; it is set aside", run_id)
            return frozenset({run_id})
    fenced: set[str] = set()
    for frame in batch:
        fenced |= await write(connection, [frame], node)
    return frozenset(fenced)


async def _write(connection: Connection, batch: Sequence[Frame], node: str) -> frozenset[str]:
    sections, values = rows.arguments(batch, node)
    statement = sql("postgres/append", *sections)
    written = {row[0] for row in await connection.fetch(statement, *values)}
    return frozenset(frame.run_id for frame in batch if frame.run_id not in written)


async def unwritten(link: Link, batch: Sequence[Frame]) -> list[Frame]:
    """Return what is to be sent again of a batch that was sent and never answered (I9).

    Its former connection is ended first and its locks are waited for, so that what is not there
    by now never will be. Frames without entries change a status only, and may do so twice.

    Raises: TimeoutError if the former connection does not end; asyncpg's errors.
    """
    connection = await link.connection()
    for name, process in list(link.former):
        for (ended,) in await connection.fetch(sql("postgres/gone"), name, process, _END_MS):
            if not ended:
                raise TimeoutError(f"the server process {process} does not end")
    link.former.clear()
    rows_now = await connection.fetch(sql("postgres/resolve"), [frame.run_id for frame in batch])
    found = {run_id: (epoch, last_seq) for run_id, epoch, last_seq in rows_now}
    return [f for f in batch if not f.entries or found.get(f.run_id) != (f.epoch, f.last_seq)]
