"""`python -m tests.simulation --seconds 60`: as many schedules as that takes; `--seed N`: one.

A schedule is a number: the same number is the same schedule, on any machine, as long as the code
is the same. Exit code 1: a promise was broken, and the seeds are printed, or 10,000 schedules and
more did not come by everything that they have to meet.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.support.options import above_zero, whole_above_zero

SHOWN = 10


def arguments() -> argparse.Namespace:
    from tests.simulation.disk import SABOTAGES

    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument(
        "--seconds", type=above_zero, help="stop after so long (60, if nothing is said)"
    )
    parser.add_argument("--schedules", type=whole_above_zero, help="stop after so many")
    parser.add_argument("--first", type=int, help="the first schedule's number; else by chance")
    parser.add_argument("--seed", type=int, help="this one schedule, with its trace")
    parser.add_argument("--trace", type=int, default=60, help="lines of trace to print")
    parser.add_argument("--jobs", type=whole_above_zero, default=os.cpu_count() or 1)
    parser.add_argument("--without", default="", help="kinds of work to leave out, by comma")
    parser.add_argument("--sabotage", default="", choices=("", *SABOTAGES), help="break the store")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if wrong := _no_work(options.without):
        parser.error(f"--without: {wrong}")
    return options


def _no_work(without: str) -> str:
    """Say what is wrong with the kinds of work that are to be left out."""
    from tests.simulation import clients, programs

    names = set(filter(None, without.split(",")))
    assert clients  # it brings the kinds along
    if unknown := names - programs.OPS.keys():
        return f"no {', '.join(sorted(unknown))}; there are {', '.join(sorted(programs.OPS))}"
    if not any(kind.parts[0] == 0 for name, kind in programs.OPS.items() if name not in names):
        return "leave some work that has no parts, or there is no program to live"
    return ""


def one(options: argparse.Namespace, without: tuple[str, ...]) -> int:
    """Live one schedule and tell all of it."""
    from tests.simulation import programs
    from tests.simulation.world import quiet, simulate

    logging.disable(logging.CRITICAL)
    programs.WITHOUT.update(without)
    with quiet():
        world = simulate(options.seed, sabotage=options.sabotage, trace=True)
        print("\n".join(world.trace[-options.trace :]))
        print(world.weather)
        print("\n".join(map(str, world.violations)) or "no promise was broken")
        code = 1 if world.violations else 0
        del world  # what is left of its processes goes quietly
    return code


def many(options: argparse.Namespace, without: tuple[str, ...]) -> int:
    """Live many, with a bar."""
    from tests.simulation.sweep import Orders, Tally, met, sweep, unmet

    seconds = options.seconds
    if seconds is None and options.schedules is None:
        seconds = 60.0
    first = options.first if options.first is not None else secrets.randbelow(1 << 31)
    orders = Orders(first, options.schedules, seconds, options.jobs, options.sabotage, without,
                    options.until_failure)  # fmt: skip
    console = Console()
    columns = (
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[schedules]:,} schedules"),
        TextColumn("{task.fields[rate]:,.0f} a minute"), TextColumn("{task.fields[failed]} failed"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0, schedules=0, rate=0, failed=0)

        def show(tally: Tally, far: float) -> None:
            rate = tally.schedules / max(tally.took_s, 0.001) * 60
            bar.update(task, completed=far, schedules=tally.schedules, rate=rate,
                       failed=len(tally.failures))  # fmt: skip

        tally = sweep(orders, show)
    print(f"from {first}: {tally}; {met(tally)}")
    for seed, found in sorted(tally.failures.items())[:SHOWN]:
        print(f"  --seed {seed}{_as_given(options)}: {found[0][:300]}")
    if len(tally.failures) > SHOWN:
        print(f"  and {len(tally.failures) - SHOWN} more")
    missing = unmet(tally, orders)
    for name in missing:
        print(f"  no schedule met: {name}")
    if options.json is not None:
        options.json.write_text(json.dumps(vars(tally)))
    return 1 if tally.failures or missing else 0


def _as_given(options: argparse.Namespace) -> str:
    """Return the options without which a seed is another schedule."""
    words = []
    if options.sabotage:
        words += ["--sabotage", options.sabotage]
    if options.without:
        words += ["--without", options.without]
    return f" {shlex.join(words)}" if words else ""


def main() -> int:
    """Do what was asked for."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts have another order each time
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
                  {**os.environ, "PYTHONHASHSEED": "0"})  # fmt: skip
    options = arguments()
    without = tuple(filter(None, options.without.split(",")))
    return one(options, without) if options.seed is not None else many(options, without)


if __name__ == "__main__":
    sys.exit(main())
