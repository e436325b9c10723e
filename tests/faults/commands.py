"""Rows of the matrix that are commands of their own: runs of tests, and the broken engines."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

Done = Callable[[int], None]  # told how many trials are over
Trials = Callable[[Path, int, int, Done], list[str]]  # place, trials, seed -> what was wrong


def tests(*names: str, seeds: str = "") -> Trials:
    """Return trials that are runs of tests; `seeds` is the option that gives them a seed."""

    def run(place: Path, trials: int, seed: int, done: Done) -> list[str]:
        wrong = []
        for number in range(trials):
            command = [sys.executable, "-m", "pytest", "-q", "-ra", "--no-header", "-p",
                       "no:cacheprovider", *names]  # fmt: skip
            command += [f"{seeds}={seed + number}"] if seeds else []
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            wrong += not_held(ended.returncode, ended.stdout)
            done(number + 1)
        return wrong

    return run


def not_held(code: int, said: str) -> list[str]:
    """Return what pytest said of tests that failed, or that nobody ran: `why_not` excuses a row."""
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    if code == 0 and (skipped or re.search(r"\b[1-9]\d* passed\b", said)):
        return skipped
    return said.splitlines()[-8:]


def mutants(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Break the engine in every known way; the tests must notice."""
    command = [sys.executable, "-m", "tests.crash.mutants"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    done(trials)
    return [] if ended.returncode == 0 else ended.stdout.splitlines()[-30:]
