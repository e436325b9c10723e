"""`durable gc`, `backup` and `fork`: what becomes of stored runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from durable_endpoints.cli import timeline
from durable_endpoints.cli.api import Server
from durable_endpoints.cli.options import (
    console_of,
    seconds,
    server_of,
    server_options,
    store_option,
)

# Runs that need nobody any more. Dead ones wait for a person: they go only if named.
_ENDED: Final = ("completed", "failed", "cancelled")


@click.command()
@click.option("--older-than", required=True, metavar="TIME", help="Such as 30d, 12h or 90m.")
@click.option(
    "--status", "-s", "statuses", multiple=True, type=click.Choice((*_ENDED, "dead")),
    help="Only runs with this status.  [default: completed, failed, cancelled]",
)  # fmt: skip
@click.option("--name", help="Only runs of this endpoint, such as 'POST /chat'.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--vacuum", is_flag=True, help="With --store: give the disk its space back.")
@click.option(
    "--store", metavar="ADDRESS", help="Work on this SQLite file itself, while no server has it.",
)  # fmt: skip
@server_options
def gc(
    older_than: str, statuses: tuple[str, ...], name: str | None, dry_run: bool, vacuum: bool,
    store: str | None, url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """Delete ended runs for good, through the running server, or (--store) on the file.

    The age of a run counts from its end. Exits with 1 if some could not be deleted.
    """
    before = datetime.now(UTC) - timedelta(seconds=seconds(older_than))
    wanted = statuses or _ENDED
    if store is not None:
        from durable_endpoints.cli import upkeep  # loads the store

        sys.exit(upkeep.collect(store, wanted, name, before, dry_run=dry_run, vacuum=vacuum))
    if vacuum:
        raise click.UsageError("--vacuum needs the file to itself: stop the server, give --store.")
    server = server_of(url, prefix, headers)
    found = [str(run["id"]) for run in _old(server, wanted, name, before)]
    if dry_run:
        click.echo(f"{len(found):,} runs would be deleted.")
        return
    outcomes: Counter[bool] = Counter()
    with progress("deleted") as bar:
        for run_id in bar.track(found):
            outcomes[server.delete(run_id)] += 1
    click.echo(f"{outcomes[True]:,} runs deleted.")
    if outcomes[False]:
        raise click.ClickException(
            f"{outcomes[False]:,} runs are not yours to delete: with principal= they are their "
            "owners'. Stop the server and use --store."
        )


def progress(verb: str) -> Progress:
    """Return a bar on stderr, that a pipe does not see."""
    console = console_of(stderr=True)
    return Progress(
        TextColumn(verb), BarColumn(), MofNCompleteColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip


def _old(
    server: Server, statuses: tuple[str, ...], name: str | None, before: datetime
) -> Iterator[dict[str, Any]]:
    for status in statuses:
        for run in server.every(status, name):
            if timeline.milliseconds(run["updated_at"]) < before.timestamp() * 1000:
                yield run


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@store_option
def backup(file: Path, force: bool, store: str | None) -> None:
    """Copy a SQLite store to FILE, whole and checked, while its server goes on.

    \b
    durable backup /backups/durable-monday.db --store sqlite:///durable.db
    """
    from durable_endpoints.cli import upkeep  # loads the store

    if file.exists() and not force:
        raise click.ClickException(f"{file} is there already: --force overwrites it.")
    upkeep.copy(store or "sqlite:///durable.db", file)


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("step", metavar="STEP")
@click.option("--input", "text", help="The new run's request body (of a call: its arguments).")
@click.option(
    "--result", "results", multiple=True, metavar="STEP=JSON",
    help="What a recorded step is to have returned.",
)  # fmt: skip
@server_options
def fork(
    run: str, step: str, text: str | None, results: tuple[str, ...],
    url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """Begin a new run that shares RUN's journal up to STEP, and goes on with today's code.

    STEP is a step's name (its first call), or the number of a journal entry: from there on all
    is done again. RUN is an id, the end of one, or `last`.

    \b
    durable fork last charge --result 'price={"amount": 10}'
    """
    server = server_of(url, prefix, headers)
    run_id = server.resolve(run)
    entries = server.journal(run_id)
    edits = dict(_edit(entries, result) for result in results)
    forked = server.fork(run_id, _place(entries, step), text, edits)
    click.echo(forked)


def _place(entries: list[dict[str, Any]], step: str) -> int:
    """Return the seq of the entry that a step's name, or a number, stands for."""
    if step.isascii() and step.isdecimal():
        return int(step)
    return int(_first(entries, step)["seq"])


def _first(entries: list[dict[str, Any]], step: str) -> dict[str, Any]:
    for entry in entries:
        key = str(entry["key"])
        if step in (key, key.partition(" ")[2]):
            return entry
    names = dict.fromkeys(str(entry["key"]).partition(" ")[2] for entry in entries)
    known = ", ".join(name for name in names if name)
    raise click.ClickException(f"The run has no step {step!r}. It has: {known or 'none'}")


def _edit(entries: list[dict[str, Any]], text: str) -> tuple[str, Any]:
    step, equals, value = text.partition("=")
    try:
        return str(_first(entries, step)["key"]), orjson.loads(value)
    except orjson.JSONDecodeError as error:
        hint = f"{text!r} is not STEP=JSON: {error if equals else 'there is no ='}"
        raise click.BadParameter(hint, param_hint="--result") from error


COMMANDS: Final = (gc, backup, fork)
