"""What the rows of the matrix let pass: nothing that did not come up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from durable_endpoints.testing import Violation
from tests.crash.judge import Report
from tests.faults import matrix
from tests.simulation.sweep import ENOUGH, Orders, Tally

UNTOLD = Violation("I7", "run", "no client was told of this run: a key made two")


def test_what_did_not_come_up_is_wrong() -> None:
    report = Report(7, kills=2, missed=["item.done:9"], violations=[UNTOLD])
    assert matrix.everything(report) == [str(UNTOLD), "item.done:9 did not come up"]
    assert matrix.told_or_not(report) == ["item.done:9 did not come up"]


def test_schedules_that_meet_nothing_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are lived as `--seed` lives them: else what is told replays another one."""

    def sweep(orders: Orders, *_: object) -> Tally:
        assert os.environ["PYTHONHASHSEED"] == "0"
        return Tally(orders.schedules or 0)

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr(matrix, "sweep", sweep)
    wrong = matrix.simulated(tmp_path, ENOUGH, 1, lambda _: None)
    assert "no schedule met: a run is suspended" in wrong
    assert matrix.simulated(tmp_path, ENOUGH - 1, 1, lambda _: None) == []
