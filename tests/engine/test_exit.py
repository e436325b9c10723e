"""An interpreter ends, whatever was left open in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio
from durable_endpoints import Engine, SQLiteStore

async def main():
    await Engine(SQLiteStore("left-open.db")).open()
    print("open")

asyncio.run(main())
"""


@pytest.mark.timeout(60)
def test_a_store_that_nobody_closed_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert ended.stdout == "open\n"
    assert ended.returncode == 0, ended.stderr
