"""The statements of the SQLite store, each a whole transaction on the writer's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from durable_endpoints.labels import terms
from durable_endpoints.limits import LIST_ROWS_MAX, RUNS_COUNTED_MAX
from durable_endpoints.records import Frame, RunRecord, Status
from durable_endpoints.states import UNFINISHED
from durable_endpoints.stores import openings, waits
from durable_endpoints.stores.protocol import Begun, Query, StoredFrame
from durable_endpoints.stores.rows import DAMAGED, ROW, is_damaged, run_of

T = TypeVar("T")

# frames.id = run number * 2^20 + first seq.
SEQ_BITS: Final = 20
SEQ_MAX: Final = (1 << SEQ_BITS) - 1

BUSY_MS: Final = 5000  # how long a statement waits for who has the file locked

_SET_ASIDE: Final = "update runs set status = 'dead', error = ? where run_id = ?"
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
# By the index of unfinished runs, whose condition it has to name.
_COUNT: Final = (
    "select count(*) from (select 1 from runs where status = ?"
    " and status in ('running', 'suspended', 'dead', 'diverged') limit ?)"
)
# The ids of unfinished runs come with the counts, so that both are of one moment.
_BEGUN: Final = (
    "select created_at_ms / 60000 as minute, name, status, count(*), case when status in"
    " ('running', 'suspended', 'dead', 'diverged') then group_concat(run_id) end"
    " from (select run_id, created_at_ms, name, status from runs"
    " where run_id >= ? and (run_id < ? or ? is null) order by run_id desc limit ?)"
    " group by minute, name, status"
)
# A partial index is used only where its own condition is to be read in the statement.
_QUEUE: Final = (
    f"select {ROW} from runs where concurrency_key = ? and concurrency_key is not null"  # noqa: S608
    " and name = ? and principal is ? and status in ('running', 'suspended', 'diverged')"
    " order by no limit ?"
)
CLAIM: Final = (
    "update runs set epoch = epoch + 1, updated_at_ms = ?2,"  # noqa: S608
    " attempts = attempts + (status <> 'suspended'),"
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
    first = [f for f in batch if f.opening is not None]
    if len(first) == len(batch) <= openings.ROWS_MAX and not any(map(_has_more, batch)):
        openings.insert(db, first, numbers)
        return _NONE

    def work() -> frozenset[str]:
        openings.insert(db, first, numbers)
        fenced = _NONE
        if len(first) < len(batch):
            fenced = _go_on(db, [f for f in batch if f.opening is None])
        for frame in filter(_has_more, batch):
            if frame.run_id in fenced:
                continue
            waits.follow(db, frame)
            if frame.labels is not None:
                _label(db, frame.run_id, frame.labels)
        return fenced

    return transaction(db, work)


def _has_more(frame: Frame) -> bool:
    """Say whether there is something to write beside the run's row and the frame."""
    return bool(frame.waits or frame.answered or frame.wakes) or frame.labels is not None


def _label(db: sqlite3.Connection, run_id: str, labels: str | None) -> None:
    """Set the labels of a run; None before it is deleted."""
    (before,) = db.execute("select labels from runs where run_id = ?", (run_id,)).fetchone()
    old, new = terms(before), terms(labels)
    gone = [(term, run_id) for term in sorted(old - new)]
    come = [(term, run_id) for term in sorted(new - old)]
    db.executemany("delete from labels where label = ? and run_id = ?", gone)
    db.executemany("insert into labels (label, run_id) values (?, ?)", come)
    db.execute("update runs set labels = ? where run_id = ?", (labels, run_id))


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


# A long run is not looked through from its start for what is new at its end.
_LAST: Final = (
    "select id from frames where id between ? and ? and first_offset <= ? order by id desc limit 1"
)
_OFFSET_MAX: Final = (1 << 63) - 1
_READ: Final = (
    "select id, entries, first_offset, events, hash_in, data from frames"
    " where id between ? and ? and (id & ?) + entries > ? and first_offset + events > ?"
    " order by id"
)


def read(
    db: sqlite3.Connection, run_id: str, seq: int, offset: int | None, limit_bytes: int
) -> list[StoredFrame]:
    """Return frames in order. See `Store.read`."""
    row = db.execute("select no from runs where run_id = ?", (run_id,)).fetchone()
    if row is None:
        return []
    low = row[0] << SEQ_BITS
    high = low + SEQ_MAX
    begin = _last_frame(db, low, low + min(seq, SEQ_MAX)) if seq else low
    if offset:
        begin = _last_frame(db, begin, high, offset)
    found: list[StoredFrame] = []
    size = 0
    wanted = -1 if offset is None else offset
    values = (begin, high, SEQ_MAX, seq, wanted)
    for number, *rest in db.execute(_READ, values):
        found.append(StoredFrame(number & SEQ_MAX, *rest))
        size += len(found[-1].data)
        if size >= limit_bytes:
            break
    return found


def _last_frame(db: sqlite3.Connection, low: int, high: int, offset: int = _OFFSET_MAX) -> int:
    """Return the id of the last frame that begins at most at an event; `low` if there is none."""
    row = db.execute(_LAST, (low, high, offset)).fetchone()
    return row[0] if row else low


def claim(
    db: sqlite3.Connection, run_ids: Sequence[str], now_ms: int, *, dead: bool
) -> list[RunRecord]:
    """Raise the runs' epochs and count an attempt. See `Store.claim`."""

    def work() -> list[RunRecord]:
        found: list[RunRecord] = []
        for run_id in run_ids:
            try:
                rows = db.execute(CLAIM, (run_id, now_ms, dead)).fetchall()
            except sqlite3.IntegrityError:  # damaged, and nothing in its row can be changed
                continue
            for row in rows:
                if is_damaged(row):
                    db.execute(_SET_ASIDE, (DAMAGED, run_id))
                else:
                    found.append(run_of(row))
        return found

    return transaction(db, work)


def remove(db: sqlite3.Connection, run_id: str) -> tuple[int, str | None] | None:
    """Remove a run and all that belongs to it; return its number and its principal."""
    sql = "select no, principal from runs where run_id = ?"
    row: tuple[int, str | None] | None = db.execute(sql, (run_id,)).fetchone()
    if row is not None:
        _label(db, run_id, None)
        db.execute("delete from runs where no = ?", (row[0],))
        low, high = row[0] << SEQ_BITS, (row[0] + 1) << SEQ_BITS
        db.execute("delete from frames where id between ? and ?", (low, high - 1))
        db.execute("delete from waits where no = ?", (row[0],))
    return row


def delete(db: sqlite3.Connection, run_id: str) -> bool:
    """Remove a run for good. See `Store.delete`."""

    def work() -> bool:
        row = remove(db, run_id)
        if row is not None:
            db.execute("insert into deleted (run_id, principal) values (?, ?)", (run_id, row[1]))
        return row is not None

    return transaction(db, work)


def empty_log(db: sqlite3.Connection) -> bool:
    """Fold the log back and empty it; False if somebody reads at the time, a backup maybe.

    Without a wait: every commit would wait behind it.
    """
    db.execute("pragma busy_timeout = 0")
    try:
        (busy, *_) = db.execute("pragma wal_checkpoint(truncate)").fetchone()
    finally:
        db.execute(f"pragma busy_timeout = {BUSY_MS}")
    return not busy


def count(db: sqlite3.Connection) -> dict[Status, int]:
    """Count unfinished runs by status. See `Store.count`."""
    return {
        status: db.execute(_COUNT, (status, RUNS_COUNTED_MAX)).fetchone()[0]
        for status in UNFINISHED
    }


def begun(db: sqlite3.Connection, since: str, before: str | None, limit: int) -> list[Begun]:
    """Count runs by minute, name and status. See `Store.begun`."""
    rows = db.execute(_BEGUN, (since, before, before, limit))
    return [
        Begun(minute, name, status, runs, tuple(ids.split(",")) if ids else ())
        for minute, name, status, runs, ids in rows
    ]


def list_sql(query: Query) -> tuple[str, list[Any]]:
    """Return the statement for a list of runs, and its values."""
    if query.concurrency_key is not None:
        place = [query.concurrency_key, query.name, query.principal]
        return _QUEUE, [*place, min(query.limit, LIST_ROWS_MAX)]
    terms: list[str] = []
    values: list[Any] = []
    source, order = "runs", "run_id"
    if query.due_ms is not None:
        source = "runs indexed by runs_due"
        terms.append("wake_at_ms is not null")
    elif query.labels:  # walks the runs that have the first of them, the newest first
        order = "labelled"
        source = "(select run_id as labelled from labels where label = ?) cross join runs"
        terms.append("run_id = labelled")
        values.append(query.labels[0])
        if query.before is not None:
            terms.append("labelled < ?")
            values.append(query.before)
    for label in query.labels if query.due_ms is not None else query.labels[1:]:
        terms.append("exists (select 1 from labels l where l.label = ? and l.run_id = runs.run_id)")
        values.append(label)
    if query.statuses:
        terms.append(f"status in ({', '.join('?' * len(query.statuses))})")
        values += query.statuses
    for column, sign, value in (
        ("name", "=", query.name),
        ("principal", "=", query.principal),
        ("run_id", "<", query.before),
        ("wake_at_ms", "<=", query.due_ms),
        ("parent", "=", query.parent),
    ):
        if value is not None:
            terms.append(f"{column} {sign} ?")
            values.append(value)
    # A partial index is used only where its own condition is to be read in the statement.
    if query.statuses and set(UNFINISHED).issuperset(query.statuses):
        terms.append("status in ('running', 'suspended', 'dead', 'diverged')")
    where = f"where {' and '.join(terms)} " if terms else ""
    values.append(min(query.limit, LIST_ROWS_MAX))
    sql = f"select {ROW} from {source} {where}order by {order} desc limit ?"  # noqa: S608
    return sql, values


def first(rows: list[RunRecord]) -> RunRecord | None:
    """Return the first row, if there is one."""
    return rows[0] if rows else None
