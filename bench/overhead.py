"""Measures what durability adds to a request: `python -m bench.overhead --help`."""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

from bench import machine, outcome, phases, report, stats
from bench.contenders import OWN, Contender, on_postgres
from bench.outcome import WORK
from bench.peers import install

_WORKLOADS = frozenset({"steps", "chat"})
Rounds = list[dict[str, dict[str, Any]]]
FIGURES = (
    "p50_us", "p99_us", "cpu_us_per_run", "syncs_per_run", "many_per_s", "many_p99_ms",
    "many_cpu_us_per_run", "tokens_per_s", "first_ms", "paced_total_ms", "paced_first_ms",
    "chat_cpu_us_per_token",
)  # fmt: skip


def run_rounds(
    contenders: list[Contender],
    count: int,
    length: phases.Length,
    workloads: set[str],
    progress: Progress,
    slow_ms: float | None = None,
    shim: Path | None = None,
) -> Rounds:
    """Measure every contender once a round, in another order each round.

    `slow_ms`, `shim`: with every sync so much slower, by what `phases.build_shim` made.
    """
    rounds: Rounds = []
    label = "disk as it is" if slow_ms is None else f"every sync {slow_ms:g} ms slower"
    task = progress.add_task(label, total=count * len(contenders))
    for number in range(count):
        found: dict[str, dict[str, Any]] = {}
        for contender in random.Random(number).sample(contenders, len(contenders)):
            progress.update(task, description=f"{label}: {contender.title}")
            found[contender.key] = _one(contender, length, workloads, shim, slow_ms)
            progress.advance(task)
        rounds.append(found)
    progress.update(task, description=label)
    return rounds


def _one(
    contender: Contender,
    length: phases.Length,
    workloads: set[str],
    shim: Path | None,
    slow_ms: float | None,
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    directory = WORK / "run" / contender.key
    env = phases.slow_disk(shim, directory, slow_ms) if shim and slow_ms is not None else None
    if "steps" in workloads & contender.workloads:
        found = phases.undisturbed(lambda: phases.steps(contender, directory, length, env))
        figures |= _named("steps", found)
    if "chat" in workloads & contender.workloads:
        found = phases.undisturbed(lambda: phases.chat(contender, directory, length))
        figures |= _named("chat", found)
    return figures


def _named(workload: str, figures: dict[str, Any]) -> dict[str, Any]:
    both = ("read_back", "steal_pct", "others_pct")  # the same name in either workload
    return {f"{workload}_{k}" if k in both else k: v for k, v in figures.items()}


def summarize(contenders: list[Contender], rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Return per contender and figure: its spread, its ratio to bare, what it adds to bare."""
    summary: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        figures = {
            name: {
                "value": stats.over_rounds(rounds, contender.key, name),
                "of_bare": stats.ratios(rounds, contender.key, name),
                "added": stats.differences(rounds, contender.key, name),
            }
            for name in FIGURES
        }
        summary[contender.key] = {k: v for k, v in figures.items() if v["value"] is not None}
    return summary


def _others(rounds: Rounds) -> float:
    """Return how much of the CPU other work had while our own contenders were measured."""
    own = {c.key for c in OWN}
    return statistics.median(
        float(value)
        for found in rounds
        for key, figures in found.items()
        for name, value in figures.items()
        if key in own and name.endswith("others_pct")
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument(
        "--rounds", type=outcome.at_least_once, default=5, help="interleaved rounds (default 5)"
    )
    outcome.add_options(parser, "2 short rounds")
    outcome.add_only(parser)
    parser.add_argument("--workloads", type=_workloads, default=set(_WORKLOADS), help="steps,chat")
    parser.add_argument(
        "--slow-fdatasync-ms", type=_delays, default=[], metavar="MS,...",
        help="also with every fdatasync slowed by so much, e.g. 2,5 (needs cc)",
    )  # fmt: skip
    parser.add_argument("--postgres", action="store_true", help="also ours on PostgreSQL")
    parser.add_argument("--peers", action="store_true", help="also the peers, and --postgres")
    parser.add_argument("--readme", action="store_true", help="write README's tables and chart")
    options = parser.parse_args(arguments)
    outcome.refuse_part(parser, options)
    if options.slow_fdatasync_ms and not shutil.which("cc"):
        parser.error("--slow-fdatasync-ms needs a C compiler (cc): install one, or leave it out")
    return options


def _workloads(text: str) -> set[str]:
    found = set(text.split(","))
    if not found or not found <= _WORKLOADS:
        raise argparse.ArgumentTypeError(f"{text!r}: choose of {', '.join(sorted(_WORKLOADS))}")
    return found


def _delays(text: str) -> list[float]:
    return [float(delay_ms) for delay_ms in text.split(",") if delay_ms]


def choose(only: str, *, peers: bool, postgres: bool = False) -> list[Contender]:
    """Return the contenders asked for; the bare app is always among them."""
    contenders = list(OWN)
    if peers or postgres:
        try:
            contenders += on_postgres()
        except FileNotFoundError as error:
            print(f"ours on PostgreSQL is left out: {error}", file=sys.stderr)
    if peers:
        contenders += install.contenders()
    wanted = {key for key in only.split(",") if key}
    unknown = wanted - {c.key for c in contenders}
    if unknown:
        known = ", ".join(c.key for c in contenders)
        raise SystemExit(f"no contender {', '.join(sorted(unknown))}; there are: {known}")
    return [c for c in contenders if not wanted or c.key in wanted or c.key == "bare"]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    contenders = choose(options.only, peers=options.peers, postgres=options.postgres)
    count = min(2, options.rounds) if options.quick else options.rounds
    length = phases.QUICK if options.quick else phases.FULL
    few = (count + 1) // 2  # short rounds on a slow disk
    shim = phases.build_shim(WORK) if options.slow_fdatasync_ms else None
    result: dict[str, Any] = {
        "kind": "overhead",
        "machine": machine.describe(WORK),
        "settings": {
            "rounds": count, "steps": phases.STEPS, "tokens": phases.TOKENS,
            "pace_ms": phases.PACE_MS, "clients": phases.CLIENTS, "quick": options.quick,
        },
        "contenders": {c.key: {"title": c.title, "on_disk": c.on_disk} for c in contenders},
    }  # fmt: skip
    if options.peers:
        result["machine"]["peers"] = install.versions(contenders)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        rounds = run_rounds(contenders, count, length, options.workloads, progress)
        result |= {"rounds": rounds, "summary": summarize(contenders, rounds), "slow": {}}
        result["machine"]["others_pct"] = _others(rounds)
        for delay in options.slow_fdatasync_ms:
            slowable = [c for c in contenders if c.slowable]
            slow = run_rounds(slowable, few, phases.QUICK, {"steps"}, progress, delay, shim)
            result["slow"][f"{delay:g}"] = {"rounds": slow, "summary": summarize(contenders, slow)}
    outcome.keep(options, result)
    report.show(result, Console())
    if options.readme:
        report.write_readme()


if __name__ == "__main__":
    main()
