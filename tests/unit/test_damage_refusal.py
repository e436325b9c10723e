"""A database that a write has found damaged is not started on again and again."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from durable_endpoints.errors import StoreFailed, StoreRefused
from durable_endpoints.ids import new_run_id
from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores.sqlite import SQLiteStore


def frame(number: int) -> Frame:
    run_id = new_run_id(number)
    record = RunRecord(run_id, "n", "running", 1, 1)
    return Frame(run_id, 1, 0, 1, 0, 0, 0, b"x" * 3000, 1, "running", record)


def test_damage_that_a_write_meets_refuses_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "d.db"

    async def fill() -> None:
        store = SQLiteStore(path)
        await store.open()
        for number in range(200):
            await store.append([frame(number)])
        await store.close()

    async def write_on_damage() -> None:
        store = SQLiteStore(path)
        await store.open()
        with pytest.raises(StoreFailed, match="malformed"):
            for number in range(200, 400):
                await store.append([frame(number)])
        assert store.failed is not None
        for connection in (store._reader, store._writer):
            assert connection is not None
            await connection.close()  # as the end of the process would
        store._owner.release(clean=False)

    async def start_again() -> None:
        with pytest.raises(StoreRefused, match="Restore a backup"):
            await SQLiteStore(path).open()

    asyncio.run(fill())
    with closing(sqlite3.connect(path)) as db:
        sql = "select rootpage from sqlite_schema where name = 'sqlite_autoindex_runs_1'"
        page = db.execute(sql).fetchone()[0] - 1
    data = bytearray(path.read_bytes())
    data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(data)
    asyncio.run(write_on_damage())
    asyncio.run(start_again())
