"""A real server, killed at every point around waits, effects, attempts and compensations."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path

import pytest

from tests.crash.waiting import __main__ as command
from tests.crash.waiting.judge import Report
from tests.crash.waiting.trials import in_parts, processors

# Of each point around a wait, a signal, a timer, an effect and a compensation; the others have a
# few. More by WAITING=100, or python -m tests.crash.waiting.
TRIALS = int(os.environ.get("WAITING", "20"))
OTHERS = max(1, TRIALS // 7)

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120 + 120 * TRIALS)]


def test_every_point(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("--crash-seed") or secrets.randbelow(1_000_000)
    report = asyncio.run(in_parts(tmp_path, seed, TRIALS, processors(), others=OTHERS))
    print(f"seed {seed}: {report}")
    assert not report.violations, str(report)
    assert not report.missed, str(report)


@pytest.mark.parametrize("missed, code", [([], 0), (["wait.begin:1"], 1)])
def test_the_command_fails_where_a_point_did_not_come_up(
    missed: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> Report:
        return Report(missed=missed)

    monkeypatch.setattr(command, "in_parts", killed)
    monkeypatch.setattr(sys, "argv", ["waiting"])
    assert command.main() == code
