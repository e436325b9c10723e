"""A real server, killed at every point around waits, effects, attempts and compensations."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

import pytest

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
