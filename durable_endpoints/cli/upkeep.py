"""Retention and copies of a SQLite store's file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.progress import Progress

from durable_endpoints.cli.keeping import progress
from durable_endpoints.cli.opening import pages, wait_for
from durable_endpoints.errors import DurableError
from durable_endpoints.stores.protocol import Query
from durable_endpoints.stores.sqlite import SCHEMA, SQLiteStore, quoted

# Of 4 KiB each: some milliseconds of copying between two steps of the bar.
_PAGES: Final = 2_000
_LOCK_WAIT_S: Final = 1.0


def _path(store: str) -> Path:
    if "://" in store and not store.startswith("sqlite:///"):
        raise click.ClickException(f"{store} is no SQLite file; use its own tools for this.")
    path = Path(store.removeprefix("sqlite:///")).absolute()
    if not path.is_file():
        raise click.ClickException(f"There is no database {path}: name it with --store.")
    return path


def collect(
    store: str, statuses: Sequence[Any], name: str | None, before: datetime,
    *, dry_run: bool, vacuum: bool,
) -> int:  # fmt: skip
    """Delete old runs from a file that no server has open; return the exit status."""
    try:
        return wait_for(
            _collect(_path(store), statuses, name, before, dry_run=dry_run, vacuum=vacuum)
        )
    except DurableError as error:
        raise click.ClickException(f"{error}") from error


async def _collect(
    path: Path, statuses: Sequence[Any], name: str | None, before: datetime,
    *, dry_run: bool, vacuum: bool,
) -> int:  # fmt: skip
    store = SQLiteStore(path, lock_wait_s=_LOCK_WAIT_S)
    await store.open()
    try:
        until_ms = before.timestamp() * 1000
        query = Query(tuple(statuses), name)
        found = [row.run_id async for row in pages(store, query) if row.updated_at_ms < until_ms]
        if dry_run:
            click.echo(f"{len(found):,} runs would be deleted.")
            return 0
        with progress("deleted") as bar:
            for run_id in bar.track(found):
                await store.delete(run_id)
        click.echo(f"{len(found):,} runs deleted.")
        if vacuum:
            size = _size(path)
            await store.vacuum()
            freed = max(0, size - _size(path))
            click.echo(f"{freed / 1024:,.0f} KiB given back to the disk.")
    finally:
        await store.close()
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size


def copy(store: str, target: Path) -> None:
    """Copy a store's file as it is in one moment; in its place only once it is checked.

    Raises: click.ClickException.
    """
    path = _path(store)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with progress("pages copied") as bar:
            runs = _copy(path, part, bar)
        _check(part, runs)
        part.replace(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise click.ClickException(f"{path} could not be copied to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{target}: {runs:,} runs, {target.stat().st_size / 1024:,.0f} KiB, checked.")


def _copy(path: Path, part: Path, bar: Progress) -> int:
    """Copy one snapshot; return how many runs are in it."""
    task = bar.add_task("", total=None)

    def step(_: int, left: int, total: int) -> None:
        bar.update(task, total=total, completed=total - left)

    uri = f"file:{quoted(path)}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as source,
        closing(sqlite3.connect(part)) as copied,
    ):
        schema = source.execute("pragma user_version").fetchone()[0]
        if schema != SCHEMA:
            raise click.ClickException(f"{path} has schema {schema}, this release knows {SCHEMA}.")
        # One read transaction over all steps: commits of the server do not begin it anew.
        source.execute("begin")
        runs: int = source.execute("select count(*) from runs").fetchone()[0]
        source.backup(copied, pages=_PAGES, progress=step)
        source.execute("rollback")
    _sync(part)
    return runs


def _check(part: Path, runs: int) -> None:
    uri = f"file:{quoted(part)}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        found = db.execute("pragma quick_check(1)").fetchone()[0]
        count = db.execute("select count(*) from runs").fetchone()[0]
    if found != "ok" or count != runs:
        raise click.ClickException(f"The copy is not whole ({found}; {count} of {runs} runs).")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
