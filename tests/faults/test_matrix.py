"""What the rows of the matrix let pass: nothing that did not come up."""

from __future__ import annotations

from durable_endpoints.testing import Violation
from tests.crash.judge import Report
from tests.faults import matrix

UNTOLD = Violation("I7", "run", "no client was told of this run: a key made two")


def test_what_did_not_come_up_is_wrong() -> None:
    report = Report(7, kills=2, missed=["item.done:9"], violations=[UNTOLD])
    assert matrix.everything(report) == [str(UNTOLD), "item.done:9 did not come up"]
    assert matrix.told_or_not(report) == ["item.done:9 did not come up"]
