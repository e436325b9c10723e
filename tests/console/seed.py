"""A store with many runs, or one long one, written as the engine writes it but far faster."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import orjson

from durable_endpoints.clock import SystemClock
from durable_endpoints.frames import pack, pack_entry
from durable_endpoints.ids import new_run_id
from durable_endpoints.records import Frame, Kind, RunRecord
from durable_endpoints.stores.sqlite import SQLiteStore

_META = {
    "kind": "http", "method": "POST", "path": "/ask", "raw_path": "/ask", "query": "",
    "root_path": "", "scheme": "http", "http_version": "1.1", "headers": [["host", "x"]],
    "client": ["127.0.0.1", 1], "server": ["127.0.0.1", 2], "rewinds": False, "pattern": False,
}  # fmt: skip
_RUNS = """
    insert into runs (no, run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq,
      events, attempts, version, principal, error)
    with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n < ?1),
      times (n, at, digits) as (
        select n, ?2 + n * 500, printf('%012x', ?2 + n * 500) from numbers)
    select n + 1,
      substr(digits, 1, 8) || '-' || substr(digits, 9) || printf('-7%03x-8000-%012x', n % 4096, n),
      'POST /' || case n % 3 when 0 then 'ask' when 1 then 'order' else 'report' end,
      iif(n % 50, 'completed', 'failed'), at, at + 40, 1, 1, 0, 0, '1', 'user-' || n % 10,
      iif(n % 50, null, 'ValueError: order ' || n || ' is lost')
    from times
"""
_FRAMES = """
    insert into frames (id, entries, first_offset, events, hash_in, epoch, data)
    select no << 20, 2, 0, 0, 0, 1, ? from runs
"""
_LABELS = """
    insert into labels (label, run_id) select 'tenant:t' || (no % 9), run_id from runs;
    update runs set labels = json_object('tenant', 't' || (no % 9));
"""


def _entry(kind: Kind, at_ms: int, key: str = "", payload: bytes = b"", took_us: int = 0) -> bytes:
    args = orjson.dumps(_META) if kind == Kind.STARTED else b""
    return pack_entry(kind, key.encode(), 0, at_ms, took_us, args, payload)


def _frame(number: int, at_ms: int) -> Frame:
    record = RunRecord(new_run_id(at_ms), "POST /ask", "running", at_ms, at_ms)
    data = pack([_entry(Kind.STARTED, at_ms)])
    return Frame(
        record.run_id, 1, 0, 1, 0, 0, 0, data, at_ms + 40, "dead",
        opening=record, error=f"gave up after {number} recoveries",
    )  # fmt: skip


async def _write(path: Path, frames: list[Frame]) -> None:
    store = SQLiteStore(path)
    await store.open()
    if frames:
        await store.append(frames)
    await store.close()


def _store(path: Path, frames: list[Frame]) -> None:
    # In a thread: the browser's own loop may be running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(_write(path, frames))).result()


def dead_runs(path: Path, count: int) -> None:
    """Write `count` runs that gave up."""
    now_ms = SystemClock().now_ms()
    _store(path, [_frame(number, now_ms - 1000 + number) for number in range(count)])


def many_runs(path: Path, count: int) -> None:
    """Write `count` runs that have ended, half a second apart, the last one just now."""
    _store(path, [])
    at_ms = SystemClock().now_ms() - count * 500
    frame = pack([_entry(Kind.STARTED, at_ms), _entry(Kind.COMPLETED, at_ms + 40)])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(_RUNS, (count - 1, at_ms))
        db.execute(_FRAMES, (frame,))
        db.executescript(_LABELS)
