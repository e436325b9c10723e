"""What `durable replay` and `durable export` do: see `travel` for what they are asked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from durable_endpoints.cli import render
from durable_endpoints.cli.opening import find, pages, reading
from durable_endpoints.cli.options import console_of
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.errors import Corrupt, RunDeleted
from durable_endpoints.records import RunRecord
from durable_endpoints.states import ENDED
from durable_endpoints.stores.protocol import Query, Store
from durable_endpoints.testing.exported import export
from durable_endpoints.testing.replaying import NotReplayable, Replayed, Replayer

__all__ = ["Query", "Replayer", "check", "explained", "read", "replay_one"]

# Of a long run, the last calls before the point where it ended or drifted.
_SHOWN: Final = 12
# What became of a run, in the summary's order; the first two are as they should be.
_SUMMARY: Final = {
    "same": ("✓", "green", "as recorded, to the end"),
    "open": ("✓", "green", "unfinished, and as recorded so far"),
    "pinned": ("·", "cyan", "not replayed: ended under another version of their endpoint"),
    "gone": ("·", "cyan", "not replayed: deleted meanwhile"),
    "drifted": ("✗", "red", "would not go on with today's code"),
    "damaged": ("✗", "red", "damaged: cannot be read"),
}


@contextmanager
def explained() -> Iterator[None]:
    """Say readably what went wrong; what the engine logs of a replay is no news."""
    log = logging.getLogger("durable_endpoints")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except RunDeleted as error:
        raise click.ClickException(f"Run {error} was deleted meanwhile.") from error
    except (NotReplayable, RuntimeError, Corrupt) as error:
        raise click.ClickException(f"{error}") from error
    finally:
        log.setLevel(level)


async def replay_one(replayer: Replayer, address: str, wanted: str) -> int:
    """Replay a run and tell of it; return the exit status."""
    async with reading(address) as store:
        record = await find(store, wanted)
        entries = await read_journal(store, record.run_id, last=record.last_seq)
    async with replayer.started():
        replayed = await replayer.replay(
            entries, run_id=record.run_id, version=record.version, principal=record.principal
        )
    _tell(console_of(), record, replayed)
    return 0 if replayed.ok else 1


def _tell(console: Console, record: RunRecord, replayed: Replayed) -> None:
    console.print(
        Text(f"{record.run_id} {render.line(record.name)} "), render.status(record.status)
    )
    left_out = max(0, len(replayed.replayed) - _SHOWN)
    if left_out:
        console.print(Text(f"   … {left_out:,} recorded results before", style="dim"))
    for number, name in enumerate(replayed.replayed[left_out:], left_out + 1):
        console.print(Text.assemble((" ✓ ", "green"), (f"{number:>4} ", "dim"), render.line(name)))
    count = f"{len(replayed.replayed):,} of {replayed.recorded:,} recorded results were taken again"
    if replayed.ok:
        console.print(Text(f"The code does what is recorded: {count}.", "green"))
        if replayed.beyond:
            console.print(Text(f"It {render.safe(replayed.beyond)}.", "dim"), soft_wrap=True)
        return
    difference = render.safe(replayed.difference or "")
    console.print(Text.assemble((" ✗      ", "red"), (difference, "bold red")), soft_wrap=True)
    console.print(Text(f"The code drifts from the journal: {count} before.", "red"))


async def check(replayer: Replayer, address: str, query: Query, limit: int | None) -> int:
    """Replay the runs of a query and sum up; return the exit status."""
    counts: Counter[str] = Counter()
    console = console_of(stderr=True)
    async with reading(address) as store, replayer.started():
        records = [record async for record in pages(store, query, limit)]
        bar = Progress(
            TextColumn("replayed"), BarColumn(), MofNCompleteColumn(), console=console,
            transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        with bar:
            task = bar.add_task("", total=len(records))
            for record in records:
                verdict, difference = await _verdict(replayer, store, record)
                counts[verdict] += 1
                if difference is not None:
                    _complain(bar.console, record, difference)
                bar.advance(task)
    out = console_of()
    for verdict, (mark, colour, said) in _SUMMARY.items():
        if counts[verdict]:
            line = Text.assemble((f" {mark} ", colour), f"{counts[verdict]:,} {said}")
            out.print(line)
    if not records:
        out.print("No runs to replay.")
    return 1 if counts["drifted"] + counts["damaged"] else 0


async def _verdict(replayer: Replayer, store: Store, record: RunRecord) -> tuple[str, str | None]:
    """Return what became of a run, and what there is to complain of."""
    try:
        entries = await read_journal(store, record.run_id, last=record.last_seq)
        replayed = await replayer.replay(
            entries[: record.last_seq + 1],
            run_id=record.run_id,
            version=record.version,
            principal=record.principal,
        )
    except NotReplayable as error:
        return "drifted", str(error)
    except RunDeleted:
        return "gone", None
    except (Corrupt, ValueError) as error:
        return "damaged", str(error)
    ended = record.status in ENDED
    if replayed.other_version and ended:
        return "pinned", None
    if not replayed.ok:
        return "drifted", replayed.difference
    return ("same" if ended else "open"), None


def _complain(console: Console, record: RunRecord, difference: str) -> None:
    line = Text.assemble(
        (" ✗ ", "red"), f"{record.run_id} {render.line(record.name)} {record.status}: ",
        (render.line(difference), "red"),
    )  # fmt: skip
    console.print(line, soft_wrap=True)


async def read(address: str, wanted: str) -> tuple[RunRecord, list[dict[str, Any]]]:
    """Return a run and its journal, exported."""
    async with reading(address) as store:
        record = await find(store, wanted)
        return record, export(await read_journal(store, record.run_id, last=record.last_seq))
