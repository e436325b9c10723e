"""The default store: SQLite in WAL mode, which is the write-ahead log.

What it assumes: a local disk whose fsync is honest. What it relies on: `synchronous=FULL`, read
back at start; exactly one connection that writes or checkpoints, because SQLite before 3.51.3
can corrupt a database under two (sqlite.org/wal.html, "the WAL-reset bug").
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import aiosqlite

from durable_endpoints import limits
from durable_endpoints.errors import Corrupt, StoreError, StoreFailed, StoreRefused
from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.stores import openings, statements, waits
from durable_endpoints.stores.nodes import Nodes
from durable_endpoints.stores.ownership import Ownership
from durable_endpoints.stores.protocol import Begun, Query, StoredFrame, WaitQuery
from durable_endpoints.stores.rows import ROW, run_of
from durable_endpoints.stores.turns import SHORT_TURNS

T = TypeVar("T")
Rows: TypeAlias = list[RunRecord]  # inside the class, `list` is a method

SCHEMA: Final = 2
# What a commit adds to the log besides the frames: some index and table pages.
_COMMIT_BYTES: Final = 12 * limits.KIB
_SQL: Final = Path(__file__).parent / "sql"
_DAMAGE: Final = "malformed"  # what SQLite says of a page that it cannot make sense of


# Those of new runs are of as many kinds as there may be runs in one.
_STATEMENTS_KEPT: Final = 128 + openings.ROWS_MAX


class _Connection(aiosqlite.Connection):
    """aiosqlite's connection, with one thread hop for a whole function."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result: T = await self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        except UnicodeDecodeError as error:  # SQLite quotes in its message what is damaged
            raise sqlite3.DatabaseError("malformed, beyond what can be said of it") from error
        return result


class SQLiteStore:
    """Implements `Store` on one database file, owned by this process."""

    def __init__(self, path: str | os.PathLike[str], *, lock_wait_s: float = limits.LOCK_WAIT_S):
        self.path = Path(path).absolute()
        self._owner = Ownership(self.path)
        self._lock_wait_s = lock_wait_s
        self._pid = os.getpid()
        self.failed: str | None = None
        self.nodes: Nodes | None = None
        self._writer: _Connection | None = None
        self._reader: _Connection | None = None
        self._next_no = 1
        self._last_commit_s = 0.0
        self._logged_bytes = 0  # in the log since it was last folded back, roughly
        self._checkpoint: asyncio.TimerHandle | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._emptying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See `Store.open`."""
        self._pid = os.getpid()
        try:
            await self._open()
        except (OSError, sqlite3.Error) as error:
            reason = (
                f"{self.path} cannot be opened as a journal: {error}. Check that the file is a "
                "database of durable-endpoints, that its directory can be written, and that the "
                "disk is neither full nor failing; then start again."
            )
            if self._writer is not None and isinstance(error, OSError | sqlite3.OperationalError):
                # Closing would write and sync once more, after a sync that failed (I9).
                self.failed = reason
                raise StoreFailed(reason) from error
            await self._abandon()
            raise StoreRefused(reason) from error
        except BaseException:
            await self._abandon()
            raise

    async def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._owner.take, self._lock_wait_s)
        if not self._owner.was_clean:
            await asyncio.to_thread(self._owner.make_durable)
        self._writer = await self._connect(f"file:{quoted(self.path)}?mode=rwc")
        if self._owner.was_damaged:
            await self._writer.run(_refuse_damage)
        self._next_no = await self._writer.run(_prepare)
        await asyncio.to_thread(_preallocate, self.path)
        self._reader = await self._connect(f"file:{quoted(self.path)}?mode=ro")

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`."""
        numbers = {}
        for frame in batch:
            if frame.opening is not None:
                numbers[frame.run_id] = self._next_no
                self._next_no += 1
            if frame.last_seq > statements.SEQ_MAX:
                raise StoreError(f"run {frame.run_id} has more than {statements.SEQ_MAX} entries")
        with SHORT_TURNS:
            fenced = await self._write(lambda db: statements.append(db, batch, numbers))
        self._logged_bytes += _COMMIT_BYTES + sum(len(frame.data) for frame in batch)
        self._plan_checkpoint()
        return fenced

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        """See `Store.read`."""
        try:
            return await self._read(
                lambda db: statements.read(db, run_id, seq, offset, limit_bytes)
            )
        except StoreFailed as error:
            if _DAMAGE in str(error):  # nobody knows of more than this run
                raise Corrupt(f"run {run_id}: {error}") from error
            raise

    async def get(self, run_id: str) -> RunRecord | None:
        """See `Store.get`."""
        return statements.first(await self._rows("where run_id = ?", (run_id,)))

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """See `Store.find`."""
        where = "where coalesce(principal, '') = ? and name = ? and idempotency_key = ?"
        return statements.first(await self._rows(where, (principal or "", name, key)))

    async def list(self, query: Query) -> list[RunRecord]:
        """See `Store.list`."""
        sql, values = statements.list_sql(query)
        return await self._read(lambda db: [*map(run_of, db.execute(sql, values).fetchall())])

    async def count(self) -> Mapping[Status, int]:
        """See `Store.count`."""
        return await self._read(statements.count)

    async def begun(self, since: str, before: str | None, limit: int) -> Sequence[Begun]:
        """See `Store.begun`."""
        return await self._read(lambda db: statements.begun(db, since, before, limit))

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        """See `Store.waits`."""
        return await self._read(lambda db: waits.find(db, query))

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        """See `Store.claim`."""
        return await self._write(lambda db: statements.claim(db, run_ids, now_ms, dead=dead))

    async def release(self, run_ids: Sequence[str]) -> None:
        """See `Store.release`."""
        sql = "update runs set attempts = 0 where run_id = ?"
        rows = [(run_id,) for run_id in run_ids]
        await self._write(lambda db: statements.transaction(db, lambda: db.executemany(sql, rows)))

    async def delete(self, run_id: str) -> bool:
        """See `Store.delete`."""
        gone = await self._write(lambda db: statements.delete(db, run_id))
        if gone:
            await self._empty_log()
        return gone

    async def was_deleted(self, run_id: str, principal: str | None) -> bool:
        """See `Store.was_deleted`."""
        sql = "select 1 from deleted where run_id = ? and principal is ?"
        whose = (run_id, principal)
        return await self._read(lambda db: db.execute(sql, whose).fetchone() is not None)

    async def close(self) -> None:
        """See `Store.close`."""
        if self._checkpoint is not None:
            self._checkpoint.cancel()
        if self._emptying is not None:
            self._emptying.cancel()
        behind = [task for task in (self._checkpointing, self._emptying) if task is not None]
        await asyncio.gather(*behind, return_exceptions=True)
        self._checkpoint = self._checkpointing = self._emptying = None
        self._logged_bytes = 0
        if self.failed is not None:
            return  # closing would checkpoint what failed to be written (I9)
        if self._reader is not None:
            await self._reader.close()
        if self._writer is not None:
            await self._writer.close()
        self._reader = self._writer = None
        self._owner.release(clean=True)

    async def vacuum(self) -> None:
        """Give the disk back what deleted runs have left; needs the file's size once more."""
        await self._write(lambda db: db.execute("vacuum"))
        await self._empty_log()

    async def settings(self) -> dict[str, Any]:
        """Return what the database says of its own settings, for the doctor."""
        return await self._read(
            lambda db: {
                "path": str(self.path),
                "sqlite": sqlite3.sqlite_version,
                "journal_mode": db.execute("pragma journal_mode").fetchone()[0],
                "schema": db.execute("pragma user_version").fetchone()[0],
                "runs": db.execute("select count(*) from runs").fetchone()[0],
                "bytes": self.path.stat().st_size,
            }
        )

    async def _rows(self, rest: str, values: tuple[Any, ...]) -> Rows:
        sql = f"select {ROW} from runs {rest}"  # noqa: S608 - rest is written in this file
        return await self._read(lambda db: [*map(run_of, db.execute(sql, values).fetchall())])

    async def _connect(self, uri: str) -> _Connection:
        def connector() -> sqlite3.Connection:
            db = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False,
                cached_statements=_STATEMENTS_KEPT,
            )  # fmt: skip
            db.execute(f"pragma busy_timeout = {statements.BUSY_MS}")
            db.execute("pragma wal_autocheckpoint = 0")
            return db

        connection = _Connection(connector, iter_chunk_size=64)
        # A store that nobody closed must not keep the interpreter from its end.
        connection._thread.daemon = True  # noqa: SLF001
        await connection
        return connection

    async def _abandon(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                await connection.close()
        self._reader = self._writer = None
        self._owner.release(clean=False)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            raise StoreFailed(self.failed or "the store is not open")
        try:
            return await self._reader.run(work)
        except sqlite3.Error as error:
            raise StoreFailed(f"cannot read {self.path}: {error}") from error

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.failed is not None or self._writer is None:
            raise StoreFailed(self.failed or "the store is not open")
        if os.getpid() != self._pid:
            raise StoreFailed("the process forked after the store was opened; open it in the child")
        try:
            return await self._writer.run(work)
        except sqlite3.Error as error:
            # After a failed sync SQLite goes on as if nothing had happened; we must not (I9).
            self.failed = f"a write to {self.path} failed with unknown outcome: {error}"
            if _DAMAGE in str(error):
                self._owner.note_damage()
            raise StoreFailed(self.failed) from error

    async def _empty_log(self) -> None:
        """Empty the log, which holds the pages as they were before a deletion (I21).

        Who reads the database from outside keeps it from that for as long as it reads: then it is
        tried again, behind what is waited for here.
        """
        if not await self._write(statements.empty_log):
            if self._emptying is None or self._emptying.done():
                self._emptying = asyncio.create_task(self._empty_it_later())
            await asyncio.wait({self._emptying}, timeout=limits.EMPTY_LOG_WAIT_S)

    async def _empty_it_later(self) -> None:
        wait_s = limits.EMPTY_LOG_AGAIN_S[0]
        while self.failed is None:
            await asyncio.sleep(wait_s)
            if await self._write(statements.empty_log):
                return
            wait_s = min(2 * wait_s, limits.EMPTY_LOG_AGAIN_S[1])

    def _plan_checkpoint(self) -> None:
        """Fold the log back when no commit has come for a while, or when it has grown large."""
        loop = asyncio.get_running_loop()
        self._last_commit_s = loop.time()
        if self._logged_bytes > limits.CHECKPOINT_FORCE_BYTES:
            self._start_checkpoint()
        elif self._checkpoint is None and self._logged_bytes >= limits.CHECKPOINT_IDLE_BYTES:
            self._checkpoint = loop.call_later(limits.CHECKPOINT_IDLE_S, self._check_idle, loop)

    def _check_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._checkpoint = None
        due_s = self._last_commit_s + limits.CHECKPOINT_IDLE_S
        if loop.time() >= due_s:
            self._start_checkpoint()
        else:
            self._checkpoint = loop.call_at(due_s, self._check_idle, loop)

    def _start_checkpoint(self) -> None:
        if self._checkpointing is None or self._checkpointing.done():
            self._checkpointing = asyncio.create_task(self._run_checkpoint())

    async def _run_checkpoint(self) -> None:
        if self._logged_bytes >= limits.CHECKPOINT_IDLE_BYTES:
            self._logged_bytes = 0
            sql = "pragma wal_checkpoint(passive)"
            await self._write(lambda db: db.execute(sql).fetchone())


def quoted(path: Path) -> str:
    """Return a path as SQLite's URIs want it."""
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _refuse_damage(db: sqlite3.Connection) -> None:
    found = db.execute("pragma quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreRefused(
            f"the database is damaged: {found}. Restore a backup, or save what can be read with "
            "`sqlite3 durable.db .recover`, then start again."
        )


def _prepare(db: sqlite3.Connection) -> int:
    """Set up, migrate and check the database; return the next run number."""
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("pragma secure_delete = on")
    mode = db.execute("pragma journal_mode").fetchone()[0]
    synchronous = db.execute("pragma synchronous").fetchone()[0]
    if mode != "wal" or synchronous != 2:
        raise StoreRefused(
            f"SQLite answered journal_mode={mode}, synchronous={synchronous}; durability needs "
            "wal and 2 (full). Put the database on a file system that supports them."
        )
    schema = db.execute("pragma user_version").fetchone()[0]
    if schema > SCHEMA:
        raise StoreRefused(
            f"the database has schema {schema}; this release knows {SCHEMA}. "
            "Upgrade durable-endpoints, or use another database file."
        )
    for number in range(schema + 1, SCHEMA + 1):
        script = (_SQL / f"sqlite_{number:04}.sql").read_text()
        db.executescript(f"begin immediate; {script}; pragma user_version = {number}; commit;")
    db.execute("pragma wal_checkpoint(truncate)")
    db.executescript(openings.PREPARE)
    last: int = db.execute("select coalesce(max(no), 0) from runs").fetchone()[0]
    return last + 1


def _preallocate(path: Path) -> None:
    """Give the empty log its blocks: a sync that need not extend the file takes half the time.

    SQLite takes a log without a header as an empty one, and overwrites it from its beginning.
    """
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size == 0:
        with wal.open("r+b") as file:
            file.write(bytes(limits.LOG_PREALLOCATED_BYTES))
            file.flush()
            os.fsync(file.fileno())
