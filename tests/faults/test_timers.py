"""Timers under wall clocks that jump: never early by more than the jump says, never much late."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.crash.waiting.nursery import WaitingServer
from tests.faults.disk import build, why_no_shims

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(why_no_shims()), reason=why_no_shims()),
]
HOUR_S = 3600
PATIENCE_S = 30.0
LATE_S = 1.5  # a second is promised; the machine is shared
WHERE = pytest.mark.parametrize("suspended", [True, False], ids=["suspended", "in memory"])


class Naps:
    """A server whose clock is set, and runs on it that sleep."""

    def __init__(self, directory: Path, *, suspended: bool) -> None:
        self.offset = directory / "offset"
        env = {
            "LD_PRELOAD": str(build("moving_clock")), "CLOCK_OFFSET": str(self.offset),
            "SUSPEND_AFTER": "0" if suspended else "3600", "TIMER_RECHECK": "0.5",
        }  # fmt: skip
        self.suspended = suspended
        self.server = WaitingServer(directory, env=env)
        self.server.start()

    def begin(self, seconds: float, times: int = 1) -> str:
        """Begin a run that sleeps, and wait until it does."""
        path = f"/nap?seconds={seconds}&times={times}"
        answer = httpx.post(self.server.url + path, headers={"prefer": "respond-async"})
        run_id = answer.headers["durable-run-id"]
        wanted = "suspended" if self.suspended else "running"
        self._until(run_id, lambda shown: shown["status"] == wanted and shown["entries"] > 1)
        return run_id

    def set(self, seconds: int) -> None:
        fresh = self.offset.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self.offset)

    def status(self, run_id: str) -> str:
        return str(self._show(run_id)["status"])

    def awake(self, run_id: str) -> float:
        """Wait until the run is at its end; return when, by this process's own clock."""
        self._until(run_id, lambda shown: shown["status"] == "completed")
        return time.monotonic()

    def _show(self, run_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = httpx.get(f"{self.server.url}/_durable/runs/{run_id}").json()
        return shown

    def _until(self, run_id: str, right: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not right(shown := self._show(run_id)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.02)


@WHERE
def test_a_clock_that_is_set_forward_wakes_who_is_due_by_it(
    suspended: bool, tmp_path: Path
) -> None:
    naps = Naps(tmp_path, suspended=suspended)
    due, not_yet = naps.begin(600), naps.begin(2 * HOUR_S)
    naps.set(HOUR_S)
    began = time.monotonic()
    assert naps.awake(due) - began < LATE_S + 0.5
    assert naps.status(not_yet) in ("suspended", "running")


@WHERE
def test_a_clock_that_is_set_back_holds_nobody_up(suspended: bool, tmp_path: Path) -> None:
    naps = Naps(tmp_path, suspended=suspended)
    before = time.monotonic()
    run_id = naps.begin(3, times=2)  # the second sleep begins under the clock as it was set
    began = time.monotonic()
    naps.set(-HOUR_S)
    awake = naps.awake(run_id)
    assert awake - before >= 6, "early"
    assert awake - began < 6 + 2 * LATE_S


@WHERE
def test_a_clock_that_is_set_to_and_fro_wakes_nobody_early(suspended: bool, tmp_path: Path) -> None:
    naps = Naps(tmp_path, suspended=suspended)
    before = time.monotonic()
    run_id = naps.begin(4)
    began = time.monotonic()
    for seconds in (-HOUR_S, -1, -86_400, 0, 1, -2):
        naps.set(seconds)
        time.sleep(0.3)
    awake = naps.awake(run_id)
    assert awake - before >= 4 - 1, "early by more than the clock was ever put forward"
    assert awake - began < 4 + LATE_S


def test_a_sleep_that_was_begun_before_a_jump_ends_after_a_restart(tmp_path: Path) -> None:
    naps = Naps(tmp_path, suspended=True)
    run_id = naps.begin(600)
    naps.server.end_life()
    naps.set(HOUR_S)
    naps.server.start()
    began = time.monotonic()
    assert naps.awake(run_id) - began < LATE_S + 0.5
