"""Breaks the engine in every way of mutant_list.py, and sees whether its tests notice.

`python -m tests.crash.mutants [--only M1,M7]` copies the package and its tests, breaks one place
of the copy, runs the tests that are named for it, and prints a table. A mutant that survives, whose
tests do not end though it does not say that it hangs, or whose place is no longer there, is a
failure: the tests (or the list) have to be mended.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from tests.crash.mutant_list import MUTANTS, Mutant, Schedules

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "durable_endpoints"
TIMEOUT_S: Final = 300
SOUND_TIMEOUT_S: Final = 1800  # for the tests of all mutants together
SOUND_SCHEDULES: Final = 100  # of those that the unbroken engine is tried with
_TESTS_FAILED: Final = 1  # exit code of pytest, and of the simulation
_NO_TESTS_RAN: Final = 5  # pytest's

CAUGHT: Final = "caught"
SKIPPED: Final = "not tried"  # its tests cannot run on this machine
SURVIVED: Final = "SURVIVED"
TIMED_OUT: Final = "TIMED OUT"  # nobody knows whether the sound engine would have been through
BROKEN_TEST: Final = "BROKEN TEST"
NOT_APPLIED: Final = "DOES NOT APPLY"


class Verdict(NamedTuple):
    """What became of a mutant, and by whom or why."""

    word: str
    by: str
    took_s: float

    @property
    def good(self) -> bool:
        """Whether nothing has to be mended."""
        return self.word in (CAUGHT, SKIPPED)


def copy_tree(place: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", ".work", ".hypothesis")
    for name in (PACKAGE, "tests", "examples", "bench"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place / name)


def broken(place: Path, mutant: Mutant) -> dict[Path, str]:
    """Return the files of a tree as the mutant has them.

    Raises: ValueError if a place is not there exactly once, or what comes out is no Python.
    """
    found: dict[Path, str] = {}
    for patch in mutant.patches:
        path = place / PACKAGE / patch.file
        source = found.get(path) or path.read_text()
        if source.count(patch.old) != 1:
            times = source.count(patch.old)
            raise ValueError(f"{patch.file} holds {patch.old.strip()!r} {times} times")
        found[path] = source.replace(patch.old, patch.new)
    for path, source in found.items():
        if path.suffix == ".py":
            ast.parse(source)
    return found


def run_tests(
    place: Path, tests: tuple[str | Schedules, ...], timeout_s: float = TIMEOUT_S
) -> Verdict:
    """Run tests in a tree until one fails."""
    began_s, tried = time.monotonic(), False
    named = [test for test in tests if isinstance(test, str)]
    commands = [["-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
                 "--timeout", str(TIMEOUT_S // 2), *named]] if named else []  # fmt: skip
    commands += [
        ["-m", "tests.simulation", "--first", str(test.first), "--schedules", str(test.count),
         "--until-failure"]
        for test in tests if isinstance(test, Schedules)
    ]  # fmt: skip
    for command in commands:
        verdict, code = _run_one(place, command, timeout_s)
        if verdict is not None:
            return verdict._replace(took_s=time.monotonic() - began_s)
        tried = tried or code == 0
    by = ", ".join(map(str, tests))
    return Verdict(SURVIVED if tried else SKIPPED, by, time.monotonic() - began_s)


def _run_one(place: Path, command: list[str], timeout_s: float) -> tuple[Verdict | None, int]:
    """Return the verdict of one command, None if it noticed nothing, and its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=place, env=environment, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        by = f"no end within {timeout_s:g} s; if it is to have none, mutant_list.py must say so"
        return Verdict(TIMED_OUT, by, 0), _TESTS_FAILED
    said = done.stdout + done.stderr
    if done.returncode == 0:
        skipped = "pytest" in command and " passed" not in said
        return None, _NO_TESTS_RAN if skipped else 0
    for line in said.splitlines() if done.returncode == _TESTS_FAILED else ():
        if line.startswith("FAILED tests"):
            return Verdict(CAUGHT, line.split(" - ")[0].removeprefix("FAILED "), 0), 1
        if line.startswith("  --seed "):
            seed = line.split()[1].rstrip(":")
            if _fails_soundly(seed):
                return Verdict(BROKEN_TEST, f"--seed {seed} fails on the sound engine, too", 0), 1
            return Verdict(CAUGHT, f"simulation{line.rstrip()[1:][:110]}", 0), 1
    return Verdict(BROKEN_TEST, "\n".join(said.splitlines()[-5:]), 0), done.returncode


def _fails_soundly(seed: str) -> bool:
    """Say whether a schedule breaks a promise of the engine as it is: then it proves nothing."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", seed, "--trace", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode != 0


def try_mutant(mutant: Mutant) -> Verdict:
    """Break a copy of the package and see whether a test notices."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        place = Path(name)
        copy_tree(place)
        try:
            for path, source in broken(place, mutant).items():
                path.write_text(source)
        except (ValueError, SyntaxError, FileNotFoundError) as error:
            return Verdict(NOT_APPLIED, str(error), 0)
        verdict = run_tests(place, mutant.tests)
    hangs = mutant.hangs and verdict.word == TIMED_OUT
    return verdict._replace(word=CAUGHT) if hangs else verdict


def check_sound(mutants: tuple[Mutant, ...]) -> str | None:
    """Run all their tests on the engine as it is; returns what failed."""
    every = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    tests = tuple(Schedules(test.first, min(test.count, SOUND_SCHEDULES))
                  if isinstance(test, Schedules) else test for test in every)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sound-") as name:
        copy_tree(Path(name))
        verdict = run_tests(Path(name), tests, SOUND_TIMEOUT_S)
    return None if verdict.word in (SURVIVED, SKIPPED) else verdict.by


def chosen(names: str) -> tuple[Mutant, ...]:
    """Return the mutants of these names, by comma; all if there are none."""
    wanted = {name.upper() for name in names.split(",") if name}
    unknown = wanted - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise SystemExit(f"no mutant {', '.join(sorted(unknown))}; there are "
                         f"{', '.join(mutant.name for mutant in MUTANTS)}")  # fmt: skip
    return tuple(mutant for mutant in MUTANTS if not wanted or mutant.name in wanted)


def main() -> int:
    """Try what was asked for; print what became of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="M1,...", help="these; all if none is given")
    parser.add_argument("--skip-sound", action="store_true", help="do not try the sound engine")
    parser.add_argument("--list", action="store_true", help="print the list, try nothing")
    options = parser.parse_args()
    mutants = chosen(options.only)
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("mutant", "what is broken", "verdict", "s", "by")
    if options.list:
        for mutant in mutants:
            by = ", ".join(map(str, mutant.tests))
            table.add_row(mutant.name, escape(mutant.what), "", "", escape(by))
        console.print(table)
        return 0
    bad = 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
               MofNCompleteColumn(), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("the engine as it is", total=len(mutants))
        failed = None if options.skip_sound else check_sound(mutants)
        if failed is not None:
            console.print(f"the engine as it is fails: {failed}", markup=False)
            return 1
        for mutant in mutants:
            bar.update(task, description=escape(f"{mutant.name} {mutant.what}"))
            verdict = try_mutant(mutant)
            bad += not verdict.good
            table.add_row(mutant.name, escape(mutant.what), verdict.word,
                          f"{verdict.took_s:.0f}", escape(verdict.by))  # fmt: skip
            if not console.is_terminal:
                console.print(f"{mutant.name}: {verdict.word}, {verdict.took_s:.0f} s, "
                              f"{verdict.by}", markup=False)  # fmt: skip
            bar.advance(task)
    console.print(table)
    print(f"{len(mutants) - bad} of {len(mutants)} mutants caught, or not tried here")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
