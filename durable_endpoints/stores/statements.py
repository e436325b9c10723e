"""The statements of the SQLite store, each a whole transaction on the writer's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores import waits
from durable_endpoints.stores.protocol import StoredFrame

T = TypeVar("T")

# frames.id = run number * 2^20 + first seq.
SEQ_BITS: Final = 20
SEQ_MAX: Final = (1 << SEQ_BITS) - 1

ROW: Final = (
    "run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events, attempts,"
    " version, principal, idempotency_key, fingerprint, error, wake_at_ms, waiting, parent,"
    " concurrency_key"
)
_OPEN_RUN: Final = f"insert into runs (no, {ROW}) values ({', '.join('?' * 19)})"  # noqa: S608
_FIRST: Final = (
    "insert into frames (id, entries, first_offset, events, hash_in, epoch, data)"
    " values (?, ?, ?, ?, ?, ?, ?)"
)
_NONE: Final[frozenset[str]] = frozenset()
_INSERT: Final = (
    "insert into frames (id, entries, first_offset, events, hash_in, epoch, data)"
    " select (no << 20) + ?2, ?3, ?4, ?5, ?6, ?7, ?8 from runs"
    " where run_id = ?1 and epoch = ?7 and last_seq = ?2 - 1"
)
_ADVANCE: Final = (
    "update runs set last_seq = ?3, events = ?4, status = ?5, updated_at_ms = ?6,"
    " error = ?7, attempts = case when ?9 then 0 else attempts end,"
    " wake_at_ms = ?10, waiting = ?11"
    " where run_id = ?1 and epoch = ?2 and last_seq = ?8"
)
CLAIM: Final = (
    "update runs set epoch = epoch + 1, updated_at_ms = ?2, attempts = attempts + 1,"  # noqa: S608
    " status = case when status = 'suspended' then 'running' else status end,"
    " wake_at_ms = null, waiting = null"
    " where run_id = ?1 and (status in ('running', 'suspended', 'diverged')"
    " or ?3 and status = 'dead')"
    f" returning {ROW}"
)


def transaction(db: sqlite3.Connection, work: Callable[[], T]) -> T:
    """Do some work in one transaction."""
    db.execute("begin immediate")
    try:
        result = work()
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise
    db.execute("commit")
    return result


def append(
    db: sqlite3.Connection, batch: Sequence[Frame], numbers: dict[str, int]
) -> frozenset[str]:
    """Write a batch; return the runs that were fenced. See `Store.append`."""

    def work() -> frozenset[str]:
        first = [f for f in batch if f.opening is not None]
        fenced = _NONE
        if first:  # nobody else can know these runs: there is nothing to compare
            db.executemany(_OPEN_RUN, [_opening_row(numbers[f.run_id], f) for f in first])
            db.executemany(_FIRST, [_first_row(numbers[f.run_id], f) for f in first])
        if len(first) < len(batch):
            fenced = _go_on(db, [f for f in batch if f.opening is None])
        for frame in batch:
            followed = frame.waits or frame.answered or frame.wakes
            if followed and frame.run_id not in fenced:
                waits.follow(db, frame)
        return fenced

    return transaction(db, work)


def _go_on(db: sqlite3.Connection, batch: Sequence[Frame]) -> frozenset[str]:
    """Write further frames of known runs."""
    written = [f for f in batch if f.entries]
    if written:
        cursor = db.executemany(_INSERT, [_frame_row(f) for f in written])
        if cursor.rowcount != len(written):
            return _advance_singly(db, batch)
    cursor = db.executemany(_ADVANCE, [_advance_row(f) for f in batch])
    return _NONE if cursor.rowcount == len(batch) else _fenced_of(db, batch)


def _advance_singly(db: sqlite3.Connection, batch: Sequence[Frame]) -> frozenset[str]:
    """Advance the runs whose frames went in; the rare way, when one of them is fenced."""
    return frozenset(
        frame.run_id for frame in batch if db.execute(_ADVANCE, _advance_row(frame)).rowcount != 1
    )


def _fenced_of(db: sqlite3.Connection, batch: Sequence[Frame]) -> frozenset[str]:
    sql = "select 1 from runs where run_id = ? and epoch = ? and last_seq = ?"
    return frozenset(
        frame.run_id
        for frame in batch
        if db.execute(sql, (frame.run_id, frame.epoch, frame.last_seq)).fetchone() is None
    )


def _opening_row(number: int, frame: Frame) -> tuple[Any, ...]:
    run = frame.opening
    assert run is not None
    assert frame.first_seq == 0
    return (
        number, run.run_id, run.name, frame.status, run.created_at_ms, frame.at_ms, frame.epoch,
        frame.last_seq, frame.events, 0, run.version, run.principal,
        run.idempotency_key, run.fingerprint, frame.error, frame.wake_at_ms, frame.waiting,
        run.parent, run.concurrency_key,
    )  # fmt: skip


def _first_row(number: int, frame: Frame) -> tuple[Any, ...]:
    return (
        number << SEQ_BITS, frame.entries, frame.first_offset, frame.events, frame.hash_in,
        frame.epoch, frame.data,
    )  # fmt: skip


def _frame_row(frame: Frame) -> tuple[Any, ...]:
    return (
        frame.run_id, frame.first_seq, frame.entries, frame.first_offset, frame.events,
        frame.hash_in, frame.epoch, frame.data,
    )  # fmt: skip


def _advance_row(frame: Frame) -> tuple[Any, ...]:
    return (
        frame.run_id, frame.epoch, frame.last_seq, frame.first_offset + frame.events,
        frame.status, frame.at_ms, frame.error, frame.first_seq - 1, frame.progress,
        frame.wake_at_ms, frame.waiting,
    )  # fmt: skip


def read(
    db: sqlite3.Connection, run_id: str, seq: int, offset: int | None, limit_bytes: int
) -> list[StoredFrame]:
    """Return frames in order. See `Store.read`."""
    row = db.execute("select no from runs where run_id = ?", (run_id,)).fetchone()
    if row is None:
        return []
    low, high = row[0] << SEQ_BITS, (row[0] + 1) << SEQ_BITS
    sql = (
        "select id, entries, first_offset, events, hash_in, data from frames"
        " where id between ? and ? and (id & ?) + entries > ? and first_offset + events > ?"
        " order by id"
    )
    found: list[StoredFrame] = []
    size = 0
    wanted = -1 if offset is None else offset
    for number, *rest in db.execute(sql, (low, high - 1, SEQ_MAX, seq, wanted)):
        found.append(StoredFrame(number & SEQ_MAX, *rest))
        size += len(found[-1].data)
        if size >= limit_bytes:
            break
    return found


def claim(
    db: sqlite3.Connection, run_ids: Sequence[str], now_ms: int, *, dead: bool
) -> list[RunRecord]:
    """Raise the runs' epochs and count an attempt. See `Store.claim`."""

    def work() -> list[RunRecord]:
        found = []
        for run_id in run_ids:
            rows = db.execute(CLAIM, (run_id, now_ms, dead)).fetchall()
            found += [RunRecord(*row) for row in rows]
        return found

    return transaction(db, work)


def delete(db: sqlite3.Connection, run_id: str) -> bool:
    """Remove a run for good. See `Store.delete`."""

    def work() -> bool:
        row = db.execute(
            "delete from runs where run_id = ? returning no, principal", (run_id,)
        ).fetchone()
        if row is None:
            return False
        low, high = row[0] << SEQ_BITS, (row[0] + 1) << SEQ_BITS
        db.execute("delete from frames where id between ? and ?", (low, high - 1))
        db.execute("delete from waits where no = ?", (row[0],))
        db.execute("insert into deleted (run_id, principal) values (?, ?)", (run_id, row[1]))
        return True

    gone = transaction(db, work)
    if gone:  # the log still holds the old pages: fold it back and empty it (I21)
        db.execute("pragma wal_checkpoint(truncate)")
    return gone


def first(rows: list[RunRecord]) -> RunRecord | None:
    """Return the first row, if there is one."""
    return rows[0] if rows else None
