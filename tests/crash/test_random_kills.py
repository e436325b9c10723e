"""A real server, killed with SIGKILL at random moments under load, restarted, and judged."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from tests.crash.kills import random_kills

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]


def test_no_transcript_and_no_step_is_lost_or_doubled(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """I1, I2, I4, I5, I7, I8, I15, I16, and executions counted outside the process."""
    kills = pytestconfig.getoption("--crash-kills", 40)
    seed = pytestconfig.getoption("--crash-seed", None)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    report = asyncio.run(
        random_kills(tmp_path, seed, kills, clients=32, progress=lambda text: print(text))
    )
    print(report)
    assert not report.violations, str(report)
    # The kills did hit something, on every kind of endpoint.
    assert report.interrupted > 5 * kills, str(report)
    assert report.reconnects > kills, str(report)
    assert report.again > kills, str(report)
