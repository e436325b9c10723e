"""A real server, killed at every point around waits, effects, attempts and compensations."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.crash.waiting.trials import in_parts, processors

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


@pytest.mark.skipif(
    "WAITING" not in os.environ, reason="set WAITING=1, or python -m tests.crash.waiting"
)
def test_every_point_once(tmp_path: Path, crash_seed: int) -> None:
    report = asyncio.run(in_parts(tmp_path, crash_seed, 1, processors()))
    print(report)
    assert not report.violations, str(report)
    assert not report.missed, str(report)
