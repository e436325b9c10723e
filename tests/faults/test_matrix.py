"""What the rows of the matrix let pass: nothing that did not come up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from durable_endpoints.testing import Violation
from tests.crash.judge import Report
from tests.faults import matrix
from tests.simulation.sweep import ENOUGH, Orders, Tally

SKIPPED = "import pytest\n\ndef test_one(): pytest.skip('no disk')"
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


@pytest.mark.parametrize(
    "body, why",
    [
        ("def test_one(): pass", ""),
        ("def test_one(): assert False", "FAILED "),
        (SKIPPED, "no disk"),
        (
            "import pytest\n\ndef test_one(): pytest.skip('no disk')\n\ndef test_two(): pass",
            "no disk",
        ),
        ("import pytest\n\n@pytest.mark.xfail\ndef test_one(): assert False", "1 xfailed"),
        ("", "no tests ran"),
    ],
)
def test_a_row_of_tests_holds_if_all_of_them_passed(body: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(body)
    config = tmp_path / "pytest.ini"
    config.write_text("[pytest]\n")
    over: list[int] = []
    wrong = matrix.tests(str(file), "-c", str(config))(tmp_path, 1, 1, over.append)
    assert bool(wrong) == bool(why)
    assert why in "\n".join(wrong)
    assert over == [1]


def test_rows_whose_tests_need_more_than_there_is_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in matrix.ROWS if row.name == "F16")
    monkeypatch.setattr(matrix, "why_no_postgres", lambda: "")
    monkeypatch.setattr(matrix, "why_no_mounts", lambda: "no mounts")
    assert row.why_not() == "no mounts"
    monkeypatch.setattr(matrix, "why_no_postgres", lambda: "no server")
    assert row.why_not() == "no server"
