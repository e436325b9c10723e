"""What a store must hold after any power cut: all that it acknowledged, a prefix of its batches."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from durable_endpoints.errors import Corrupt
from durable_endpoints.frames import pack, pack_entry, unpack
from durable_endpoints.records import Frame, Kind, RunRecord
from durable_endpoints.stores import sqlite as store_module
from durable_endpoints.stores.sqlite import SQLiteStore
from tests.faults.recording import RECORDING, Ack, Recorder, RecordingVFS, State

PREALLOCATED = 64 << 10  # thousands of copies are made of it
Rows = dict[str, list[bytes]]  # run id -> payloads of its entries


@dataclass
class Model:
    """The same batches in a dictionary: what the store holds after each of them."""

    rows: Rows = field(default_factory=dict)
    after: list[Rows] = field(default_factory=list)

    def batch(self, chance: random.Random, size: int) -> list[Frame]:
        """Make a batch that begins runs and goes on with others."""
        frames = []
        known = list(self.rows)
        chance.shuffle(known)
        for number in range(chance.randint(1, 3)):
            new = not known or chance.random() < 0.3
            run_id = f"run{len(self.rows):03}" if new else known.pop()
            old = self.rows.setdefault(run_id, [])
            payloads = [chance.randbytes(chance.randint(1, size)) for _ in range(1 + number)]
            parts = [pack_entry(Kind.STEP, b"k", 0, 1, 1, b"", data) for data in payloads]
            opening = RunRecord(run_id, "POST /x", "running", 1, 1) if new else None
            frames.append(
                Frame(run_id, 1, len(old), len(parts), 0, 0, 0, pack(parts), 2, "running", opening)
            )
            old.extend(payloads)
        self.snapshot()
        return frames

    def snapshot(self) -> None:
        """Note what holds after the last batch."""
        self.after.append({run_id: list(payloads) for run_id, payloads in self.rows.items()})


@contextmanager
def weakened(synchronous: str) -> Iterator[None]:
    """Let the store sync less than it must: for proof that it would be noticed."""

    class Weak(RECORDING.connect):  # type: ignore[misc, name-defined]
        def execute(self, sql: str, values: Any = ()) -> Any:
            if sql == "pragma synchronous = full":
                sql = f"pragma synchronous = {synchronous}"
            if sql == "pragma synchronous":
                return iter_one(2)
            return super().execute(sql, values)

    with patch.object(RECORDING, "connect", Weak):
        yield


def iter_one(value: int) -> Any:
    """Return a cursor of one row."""
    cursor = sqlite3.connect(":memory:")
    return cursor.execute("select ?", (value,))


def record(directory: Path, seed: int, *, batches: int, size: int) -> tuple[Recorder, Model]:
    """Let the real store write some batches over a recording disk."""
    recorder = Recorder(directory)
    model = Model()
    model.snapshot()
    vfs = RecordingVFS(recorder)
    try:
        with (
            patch.object(store_module, "sqlite3", RECORDING),
            patch.object(store_module.limits, "LOG_PREALLOCATED_BYTES", PREALLOCATED),
        ):
            asyncio.run(_work(directory, recorder, model, random.Random(seed), batches, size))
    finally:
        vfs.close()
    return recorder, model


async def _work(
    directory: Path, recorder: Recorder, model: Model, chance: random.Random, batches: int,
    size: int,
) -> None:  # fmt: skip
    store = SQLiteStore(directory / "durable.db")
    await store.open()
    recorder.begin()
    recorder.add(Ack(0))
    for number in range(batches):
        await store.append(model.batch(chance, size))
        recorder.add(Ack(number + 1))
        if number % 5 == 3:  # and fold the log back, which moves pages about
            await store._write(lambda db: db.execute("pragma wal_checkpoint(passive)").fetchall())
    recorder.on = False
    await store.close()


def read(database: Path) -> Rows:
    """Return what a database holds; raises if it is damaged."""
    with closing(sqlite3.connect(database)) as db:
        found = db.execute("pragma quick_check(1)").fetchone()[0]
        if found != "ok":
            raise Corrupt(found)
        ids = dict(db.execute("select no, run_id from runs").fetchall())
        rows: Rows = {run_id: [] for run_id in ids.values()}
        for number, data in db.execute("select id, data from frames order by id").fetchall():
            rows[ids[number >> 20]] += [e.payload for e in unpack(data, number & 0xFFFFF)]
        return rows


async def read_as_a_start_does(database: Path) -> Rows:
    """Return the same through the store: its start barrier, its checks, its reads."""
    store = SQLiteStore(database, lock_wait_s=1)
    await store.open()
    try:
        rows: Rows = {}
        for run in await store.list(store_module.Query(limit=500)):
            frames = await store.read(run.run_id, limit_bytes=1 << 30)
            rows[run.run_id] = [
                entry.payload for one in frames for entry in unpack(one.data, one.first_seq)
            ]
            if len(rows[run.run_id]) != run.last_seq + 1:
                raise Corrupt(f"{run.run_id} ends at {run.last_seq}")
        return rows
    finally:
        await store.close()


def judge(state: State, model: Model, place: Path, reads: Callable[[Path], Rows]) -> str | None:
    """Say what a power cut has broken: I1 and I7 (acknowledged, lost), I8 (no prefix), I20."""
    try:
        rows = reads(state.put(place))
    except (sqlite3.Error, Corrupt) as error:
        return f"I20: damaged: {error}"
    if rows in model.after[state.acked :]:
        return None
    if rows in model.after:
        return f"I1: {state.acked} batches were acknowledged, {model.after.index(rows)} are there"
    return f"I8: what is there was never the case: {sorted(map(len, rows.values()))}"
