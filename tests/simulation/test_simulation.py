"""Thousands of crashes, pauses and reconnects that nobody has to wait for, each of them a number.

`python -m tests.simulation --seed N` replays one; `--seconds 600` looks for more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.disk import SABOTAGES
from tests.support import sometimes

ROOT = Path(__file__).parents[2]
SCHEDULES = 900
CONTROLS = 50
FOUND = (500590,)  # a run that ends the process when its wait is over


def simulated(place: Path, *options: str, jobs: int = 2) -> dict[str, Any]:
    """Simulate, in processes of their own; returns the figures."""
    figures = place / f"figures-{len(list(place.iterdir()))}.json"
    command = [sys.executable, "-m", "tests.simulation", "--jobs", str(jobs),
               "--json", str(figures), *options]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert figures.exists(), done.stderr
    found: dict[str, Any] = json.loads(figures.read_text())
    return found


def test_no_schedule_breaks_a_promise(tmp_path: Path) -> None:
    """The same schedules every time: a failure's seed is in the output."""
    found = simulated(tmp_path, "--first", "0", "--schedules", str(SCHEDULES))
    assert found["failures"] == {}
    assert found["schedules"] == SCHEDULES
    assert sometimes.missing(sometimes.SIMULATION, found["seen"]) == []


@pytest.mark.parametrize("seed", FOUND)
def test_a_schedule_that_broke_a_promise_once(seed: int, tmp_path: Path) -> None:
    found = simulated(tmp_path, "--first", str(seed), "--schedules", "1")
    assert found["failures"] == {}


def test_a_schedule_is_the_same_every_time(tmp_path: Path) -> None:
    options = ("--first", "5000", "--schedules", "50")
    digests = {simulated(tmp_path, *options, jobs=jobs)["digest"] for jobs in (1, 2)}
    assert len(digests) == 1


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_store_that_lies_is_found_out(sabotage: str, tmp_path: Path) -> None:
    """The tests above prove nothing if a broken promise would not show."""
    found = simulated(
        tmp_path, "--first", "0", "--schedules", str(CONTROLS), "--sabotage", sabotage
    )
    assert len(found["failures"]) > CONTROLS // 5
