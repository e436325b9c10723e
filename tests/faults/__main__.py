"""`python -m tests.faults [--release] [--rows F6,F8] [--times 0.1]`: the fault matrix, with a bar.

Without `--release` every row gets the few trials that each run of the suite has, with it those of
a release: hours. `--times` scales the counts. Exit code 1: something did not hold.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from tests.crash.process import kill_all
from tests.faults.matrix import ROWS, Row

SHOWN = 12


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--release", action="store_true", help="the counts of a release")
    parser.add_argument("--rows", default="", help="only these, by comma")
    parser.add_argument("--times", type=float, default=1.0, help="so many times the counts")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--keep", type=Path, help="keep stores and logs here, by their seed")
    parser.add_argument("--list", action="store_true", help="print the matrix, run nothing")
    options = parser.parse_args()
    options.rows = chosen(options.rows)
    if options.keep is not None and not options.list:
        options.keep /= str(options.seed)
        try:
            options.keep.mkdir(parents=True)
        except OSError as error:
            parser.error(f"--keep: {error}; give another directory, or another --seed")
    return options


def chosen(names: str) -> list[Row]:
    """Return the rows that were asked for."""
    wanted = set(filter(None, names.split(",")))
    unknown = wanted - {row.name for row in ROWS}
    if unknown:
        raise SystemExit(f"no row {', '.join(sorted(unknown))}; there are "
                         f"{', '.join(row.name for row in ROWS)}")  # fmt: skip
    return [row for row in ROWS if not wanted or row.name in wanted]


def count(row: Row, options: argparse.Namespace) -> int:
    """Return how many trials a row gets."""
    return max(1, round((row.release if options.release else row.often) * options.times))


def shown(rows: list[Row], options: argparse.Namespace) -> Table:
    """Return the matrix, with what cannot run here and why."""
    table = Table("row", "fault", "must hold", "trials", "here")
    for row in rows:
        why = row.why_not()
        table.add_row(row.name, row.what, row.holds, f"{count(row, options):,}", why or "yes")
    return table


def _over(bar: Progress, task: TaskID, row: Row, began_s: float, trials: int) -> None:
    """Show that so many trials are over: where nobody sees the bar, by a line for each tenth."""
    before = int(bar.tasks[task].completed)
    bar.update(task, completed=trials)
    every = int(bar.tasks[task].total or 1)
    tenth = 10 * trials // every
    if not bar.console.is_terminal and 10 * before // every < tenth < 10:
        took_s = time.monotonic() - began_s
        bar.console.print(f"{row.name}: {trials:,} of {every:,} trials, {took_s:.0f} s",
                          markup=False)  # fmt: skip


def main() -> int:
    """Run what was asked for; print what did not hold."""
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = options.rows
    console.print(shown(rows, options))
    if options.list:
        return 0
    console.print(f"seed {options.seed}")
    logging.disable(logging.CRITICAL)
    results = Table("row", "trials", "seconds", "violations")
    failed: dict[str, list[str]] = {}
    columns = (TextColumn("{task.description:<5}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("{task.fields[said]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar, tempfile.TemporaryDirectory() as made:
        for row in [row for row in rows if not row.why_not()]:
            trials = count(row, options)
            task = bar.add_task(row.name, total=trials, said=row.what)
            began_s = time.monotonic()
            place = (options.keep or Path(made)) / row.name
            place.mkdir(parents=True)
            try:
                done = partial(_over, bar, task, row, began_s)
                wrong = row.trials(place, trials, options.seed, done)
            except Exception:
                wrong = ["the row itself failed", *traceback.format_exc().splitlines()[-6:]]
            finally:
                kill_all()
            if wrong:
                failed[row.name] = wrong
            bar.update(task, said=f"{len(wrong)} violations" if wrong else "held")
            if not console.is_terminal:
                said = f"{row.name}: {trials:,} trials, {len(wrong)} violations"
                console.print(said, *wrong[:SHOWN], sep="\n  ", markup=False)
            results.add_row(row.name, f"{trials:,}", f"{time.monotonic() - began_s:.0f}",
                            str(len(wrong)))  # fmt: skip
    console.print(results)
    for name, wrong in failed.items():
        console.print(f"{name}:", *wrong[:SHOWN], sep="\n  ", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
