"""What a read costs, counted by SQLite itself in instructions of its machine."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from durable_endpoints.stores import statements
from durable_endpoints.stores.protocol import Store
from durable_endpoints.stores.sqlite import SQLiteStore
from tests.conformance.made import frame, played, record


def cost_at_the_end(path: Path, frames: int, by: str) -> int:
    """Return what it costs to read the last of so many frames."""

    async def scenario(store: Store) -> None:
        await store.append([frame(opening=record(), events=1)])
        for number in range(1, frames):
            await store.append([frame(first=number, offset=number, events=1)])

    played(SQLiteStore(path), scenario)
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    db = sqlite3.connect(path)
    db.set_progress_handler(count, 1)
    seq, offset = (frames - 1, None) if by == "seq" else (0, frames - 1)
    (found,) = statements.read(db, "r1", seq, offset, 1)
    db.close()
    assert found.first_seq == frames - 1
    return counted


@pytest.mark.parametrize("by", ["seq", "offset"])
def test_the_end_of_a_long_run_is_read_as_cheaply_as_that_of_a_short_one(
    tmp_path: Path, by: str
) -> None:
    short = cost_at_the_end(tmp_path / "short.db", 10, by)
    long = cost_at_the_end(tmp_path / "long.db", 400, by)
    assert long < 1.2 * short
