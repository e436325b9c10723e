"""What is damaged on an edge node's disk: the centre gets all but that (I20)."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.edge.sites import site
from tests.support.damage import change_row
from tests.support.gated import asks, counts, open_gate

ROW = ("name = x'ff'", "status = 'rumming'", "version = x'ff'", "updated_at_ms = 'x'",
       "last_seq = 'x'", "labels = x'ff'")  # fmt: skip
OF_ROWS = [("runs", damage, known) for damage in ROW for known in (False, True)]
# Frames that the centre has are not read again.
OTHERS = [("frames", "events = 'x'", False), ("frames", "data = 7", False),
          ("waits", "summary = x'ff'", False), ("waits", "summary = x'ff'", True)]  # fmt: skip


@pytest.mark.parametrize(("table", "damage", "known"), OF_ROWS + OTHERS)
def test_i20_a_damaged_run_keeps_no_other_from_the_centre(
    table: str, damage: str, known: bool, postgres: Callable[[], str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Damaged while the process was away; `known`: the centre has heard of the run."""
    file = tmp_path / "edge.db"

    async def main() -> None:
        async with site(f"{postgres()}&lease_ttl=30", file) as one:
            if not known:
                await one.cut()
            run_id = await one.begun(asks, "later")
            if known:
                await one.shipped()
                await one.cut()
            other = await one.begun(counts, 20, 10)
            await one.kill_edge()
            with closing(sqlite3.connect(file)) as database:
                (number,) = database.execute(
                    "select no from runs where run_id = ?", (run_id,)
                ).fetchone()
            where = {"runs": f"no = {number}", "waits": f"no = {number}",
                     "frames": f"id >> 20 = {number}"}[table]  # fmt: skip
            assert change_row(file, table, f"{damage} where {where}") >= 1
            one.mend()
            with caplog.at_level(logging.ERROR, "durable_endpoints"):
                await one.boot_edge()
                open_gate("counts")
                await one.edge.ended(other)
                await one.shipped()
            assert await one.centre.entries(other) == await one.edge.entries(other)
            assert (await one.at_centre(run_id) is not None) == known
            said = f"run {run_id} is damaged on this node's disk"
            assert sum(said in record.getMessage() for record in caplog.records) == 1

    asyncio.run(main())
