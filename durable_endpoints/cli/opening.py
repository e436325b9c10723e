"""What the commands that need no server share: the app, its store, and runs in it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from durable_endpoints.errors import DurableError
from durable_endpoints.ids import RUN_ID
from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.protocol import Query, Store
from durable_endpoints.stores.reading import open_reader

T = TypeVar("T")
RECENT: Final = 100
DEFAULT: Final = "sqlite:///durable.db"


def import_app(name: str, directory: str, *, factory: bool) -> Any:
    """Import an app by `module:name`. Raises click.ClickException if that does not work."""
    from uvicorn.importer import ImportFromStringError, import_from_string

    sys.path.insert(0, str(Path(directory).absolute()))
    try:
        app = import_from_string(name)
    except ImportFromStringError as error:
        raise click.ClickException(f"{error} Give it as module:app.") from error
    return app() if factory else app


def store_of(app: Any) -> str:
    """Return the address of the store that an app's middleware has."""
    from durable_endpoints.stores.sqlite import SQLiteStore
    from durable_endpoints.testing.replaying import NotReplayable, middleware_of

    try:
        store = middleware_of(app).engine.store
    except NotReplayable:
        return DEFAULT
    if isinstance(store, SQLiteStore):
        return f"sqlite:///{store.path}"
    raise click.ClickException("The app's store is no SQLite file: name it with --store.")


@asynccontextmanager
async def reading(address: str) -> AsyncIterator[Store]:
    """Open a store to read from. Raises click.ClickException if it cannot be."""
    try:
        store = open_reader(address)
        await store.open()
    except (DurableError, ValueError) as error:
        raise click.ClickException(f"{error}") from error
    try:
        yield store
    finally:
        await store.close()


async def find(store: Store, wanted: str) -> RunRecord:
    """Return the run that an id, the beginning or end of one, or `last` stands for.

    Raises: click.ClickException if it stands for none, or for several.
    """
    if RUN_ID.fullmatch(wanted):
        record = await store.get(wanted)
        found = [] if record is None else [record]
    else:
        rows = await store.list(Query(limit=RECENT))
        found = rows[:1] if wanted == "last" else [
            row for row in rows if row.run_id.startswith(wanted) or row.run_id.endswith(wanted)
        ]  # fmt: skip
    if len(found) != 1:
        many = f"{len(found)} of the newest {RECENT} runs match" if found else "No run matches"
        raise click.ClickException(f"{many} {wanted!r} in this store.")
    return found[0]


async def pages(store: Store, query: Query, limit: int | None = None) -> AsyncIterator[RunRecord]:
    """Yield the runs of a query, newest first, at most `limit`."""
    left = limit
    while left is None or left > 0:
        size = LIST_ROWS_MAX if left is None else min(left, LIST_ROWS_MAX)
        rows = await store.list(replace(query, limit=size))
        for row in rows:
            yield row
        if len(rows) < size:
            return
        left = None if left is None else left - len(rows)
        query = replace(query, before=rows[-1].run_id)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run something that waits, until Ctrl-C."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise click.Abort from None
