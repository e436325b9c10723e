"""Thousands of crashes, pauses and reconnects that nobody has to wait for, each of them a number.

`python -m tests.simulation --seed N` replays one; `--seconds 600` looks for more.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.simulation import __main__ as command
from tests.simulation import sweep
from tests.simulation.disk import SABOTAGES
from tests.support import sometimes

ROOT = Path(__file__).parents[2]
SCHEDULES = 900
CONTROLS = 50
FOUND = (500590,)  # a run that ends the process when its wait is over


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Simulate, in processes of their own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def simulated(place: Path, *options: str, jobs: int = 2) -> dict[str, Any]:
    """Return the figures of some schedules."""
    figures = place / f"figures-{len(list(place.iterdir()))}.json"
    done = run("--jobs", str(jobs), "--json", str(figures), *options)
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


@pytest.mark.timeout(60, method="thread")  # the signal is the sweep's
def test_a_schedule_without_an_end_is_told_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def simulate(seed: int, **_: Any) -> NoReturn:
        until_s = time.monotonic() + 20
        while seed == 7 and time.monotonic() < until_s:
            pass
        raise RuntimeError("it ended")

    monkeypatch.setattr(sweep, "HANG_S", 1)
    monkeypatch.setattr(sweep, "simulate", simulate)
    failures = sweep.lived(range(7, 9), sweep.Orders()).failures
    assert "no end within 1 s" in failures[7][0]
    assert "it ended" in failures[8][0]


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Return the exit code of a command line, in this process."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setattr(sys, "argv", ["simulation", "--first", "0", *words])
    return command.main()


def test_enough_schedules_have_to_meet_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, *others = [name for name, tiers in sometimes.table().items() if "simulation" in tiers]
    tally = sweep.Tally(sweep.ENOUGH, seen=Counter(others))
    monkeypatch.setattr(sweep, "sweep", lambda *_: tally)
    assert command_line(monkeypatch) == 1
    every = len(others) + 1
    assert f"met {every - 1} of {every} points and paths\n  no schedule met: {left}\n" in (
        capsys.readouterr().out
    )
    for other in (["--sabotage", SABOTAGES[0]], ["--without", "sleep"], ["--until-failure"]):
        assert command_line(monkeypatch, *other) == 0
    tally.schedules -= 1
    assert command_line(monkeypatch) == 0
    assert f"met {every - 1} of {every} points" in capsys.readouterr().out


def test_what_is_printed_of_a_failure_replays_it() -> None:
    lying = ["--sabotage", "half batches", "--without", "sleep,step"]
    found = run(*lying, "--first", "0", "--schedules", "25", "--jobs", "1").stdout
    line, told = next(line for line in found.splitlines() if "--seed" in line).split(": ", 1)
    assert shlex.split(line)[2:] == lying
    again = run(*shlex.split(line))
    assert again.returncode == 1
    assert told in again.stdout


@pytest.mark.parametrize(
    "words",
    ["--seconds 0", "--schedules 0", "--jobs -1", "--sabotage lies", "--without sleep,nothing"],
)
def test_what_cannot_be_asked_for(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "sweep", lambda *_: sweep.Tally())
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, *words.split())
    assert ended.value.code == 2
    assert words.split()[0] in capsys.readouterr().err.splitlines()[-1]
