"""SQLite's log: emptied after a deletion, and folded back when nothing is written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from durable_endpoints import SQLiteStore, limits
from durable_endpoints.limits import CHECKPOINT_IDLE_BYTES
from tests.conformance.made import opening
from tests.engine.worlds import PATIENCE_S

SECRET = b"of-somebody-who-wants-to-be-forgotten"


@contextmanager
def backup(file: Path) -> Iterator[None]:
    """Read a database from outside, as it is now."""
    with closing(sqlite3.connect(file, isolation_level=None)) as reading:
        reading.execute("begin")
        reading.execute("select count(*) from runs").fetchone()
        yield


def holds_it(place: Path) -> bool:
    """Say whether it stands anywhere on the disk."""
    return any(SECRET in file.read_bytes() for file in place.iterdir())


def test_i21_a_deletion_during_a_backup_keeps_nobody_waiting_and_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the database from outside has a right to the log as it is, until it has read."""
    file = tmp_path / "d.db"
    monkeypatch.setattr(limits, "EMPTY_LOG_WAIT_S", PATIENCE_S)

    async def main() -> None:
        store = SQLiteStore(file)
        await store.open()
        await store.append([opening("r1", data=SECRET)])
        with backup(file):
            deleting = asyncio.create_task(store.delete("r1"))
            while await store.get("r1") is not None:
                await asyncio.sleep(0)
            await store.append([opening("r2")])
            assert not deleting.done(), "the commit came behind what the deletion waits for"
        assert await deleting
        assert not holds_it(tmp_path)
        await store.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_i21_a_deletion_does_not_wait_for_ever_and_is_made_good_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.db"
    monkeypatch.setattr(limits, "EMPTY_LOG_WAIT_S", 0.01)

    async def main() -> None:
        store = SQLiteStore(file)
        await store.open()
        await store.append([opening("r1", data=SECRET)])
        with backup(file):
            assert await store.delete("r1")
            assert holds_it(tmp_path)
        while holds_it(tmp_path):
            await asyncio.sleep(0.01)
        await store.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_deletion_that_waits_for_a_backup_does_not_keep_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.db"
    monkeypatch.setattr(limits, "EMPTY_LOG_WAIT_S", 0.01)

    async def main() -> None:
        store = SQLiteStore(file)
        await store.open()
        await store.append([opening("r1", data=SECRET)])
        with backup(file):
            assert await store.delete("r1")
            await store.close()
        await store.open()  # the log is emptied at the start, too
        assert not holds_it(tmp_path)
        await store.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_store_that_is_opened_again_folds_its_log_back(tmp_path: Path) -> None:
    data = bytes(CHECKPOINT_IDLE_BYTES)
    file = tmp_path / "d.db"

    async def main() -> None:
        store = SQLiteStore(file)
        for run_id in ("r1", "r2"):
            await store.open()
            await store.append([opening(run_id, data=data)])
            if run_id == "r1":
                await store.close()  # before it was quiet for long enough
        before = file.stat().st_size
        while file.stat().st_size < before + len(data):
            await asyncio.sleep(0.01)
        await store.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
