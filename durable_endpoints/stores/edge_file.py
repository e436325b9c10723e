"""The local database of an edge node: journals, and what the centre may know of each.

A run is in this file for as long as this node may commit for it, or as a copy once it has ended;
what was handed over, or has gone on elsewhere, is removed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from durable_endpoints.records import RunRecord, WaitRecord
from durable_endpoints.stores import statements
from durable_endpoints.stores.protocol import StoredFrame
from durable_endpoints.stores.rows import ROW, is_damaged, run_of
from durable_endpoints.stores.sqlite import SQLiteStore

T = TypeVar("T")

# What is noted of a run: the centre may know it; it is being handed over; the centre has it
# whole; it stays here, because the centre has another run of its key. Nothing: the centre has
# never heard of it.
Mark = Literal["known", "leaving", "done", "alone"]

_TABLES: Final = """
create table if not exists edge_runs (run_id text primary key, mark text not null)
  strict, without rowid;
create table if not exists edge_node (node text not null) strict;
"""
_SET: Final = (
    "insert into edge_runs (run_id, mark) values (?1, ?2)"
    " on conflict (run_id) do update set mark = ?2"
)
# Only a run that still rests may be handed over: its claim and this are one after the other.
_LEAVE: Final = (
    "update edge_runs set mark = 'leaving' where run_id = ?1 and exists (select 1 from runs"
    " where run_id = ?1 and status in ('suspended', 'dead', 'diverged')) returning run_id"
)
_OPEN: Final = (
    "select coalesce(mark, ''), (select coalesce(sum(length(data)), 0) from frames"  # noqa: S608
    " where id between runs.no << 20 and (runs.no << 20) + 1048575),"
    f" {ROW} from runs left join edge_runs using (run_id)"
    " where coalesce(mark, '') in ('', 'known', 'leaving') order by no"
)
_ALONE: Final = "select run_id from edge_runs where mark = 'alone'"
_RUN: Final = f"select no, {ROW} from runs where run_id = ?"  # noqa: S608
_FRAMES: Final = (
    "select id, entries, first_offset, events, hash_in, data from frames"
    " where id between ? and ? order by id"
)
_WAITS: Final = (
    "select run_id, ident, kind, name, since_ms, until_ms, match, summary, principal"
    " from waits where no = ? order by ident"
)
# What a column of these holds, if it is not damaged: SQLite does not hold it against its type.
_FRAME_TYPES: Final[tuple[Any, ...]] = (int, int, int, int, bytes)
_TEXT, _TIME = (str, type(None)), (int, type(None))
_WAIT_TYPES: Final[tuple[Any, ...]] = (str, str, str, str, int, _TIME, _TEXT, _TEXT, _TEXT)


@dataclass(frozen=True, slots=True)
class Unshipped:
    """A run of which the centre may not have everything, as it is found at the start."""

    record: RunRecord
    mark: str
    size: int  # bytes of its frames
    damaged: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next of a run: some frames, its row and its open waits at the same moment."""

    record: RunRecord
    frames: Sequence[StoredFrame]
    waits: Sequence[WaitRecord]
    damaged: bool  # something of it is nothing that could have been written (I20)


class EdgeFile(SQLiteStore):
    """A `SQLiteStore` that notes beside each run what the centre may know of it."""

    async def identity(self) -> str:
        """Return this file's name as a node, after `open`: the same at every start."""

        def work(db: sqlite3.Connection) -> str:
            db.executescript(_TABLES)
            row = db.execute("select node from edge_node").fetchone()
            if row is None:
                row = (secrets.token_hex(8),)
                db.execute("insert into edge_node (node) values (?)", row)
            return str(row[0])

        return await self._write(work)

    async def unfinished(self) -> list[Unshipped]:
        """Return the runs of which the centre may not have everything, the oldest first."""

        def work(db: sqlite3.Connection) -> list[Unshipped]:
            rows = db.execute(_OPEN).fetchall()
            return [
                Unshipped(run_of(tuple(row)), mark, size, is_damaged(tuple(row)))
                for mark, size, *row in rows
            ]

        return await self._read(work)

    async def alone(self) -> set[str]:
        """Return the runs that the centre does not take."""
        return await self._read(lambda db: {row[0] for row in db.execute(_ALONE)})

    async def note(self, run_ids: Sequence[str], mark: Mark) -> None:
        """Set the mark of runs, durably."""
        rows = [(run_id, mark) for run_id in run_ids]
        await self._in_one(lambda db: db.executemany(_SET, rows))

    async def known(self, run_ids: Sequence[str]) -> set[str]:
        """Return those of some runs that are in this file."""
        one = "select run_id from runs where run_id = ?"

        def work(db: sqlite3.Connection) -> set[str]:
            return {row[0] for i in run_ids for row in db.execute(one, (i,)).fetchall()}

        return await self._read(work) if run_ids else set()

    async def leave(self, run_ids: Sequence[str]) -> set[str]:
        """Mark as leaving those of some runs that rest; return them."""

        def work(db: sqlite3.Connection) -> set[str]:
            return {
                row[0] for run_id in run_ids for row in db.execute(_LEAVE, (run_id,)).fetchall()
            }

        return await self._in_one(work)

    async def forget(self, run_ids: Sequence[str]) -> None:
        """Remove runs that the centre has, with all that is noted of them."""

        def work(db: sqlite3.Connection) -> None:
            for run_id in run_ids:
                db.execute("delete from edge_runs where run_id = ?", (run_id,))
                statements.remove(db, run_id)

        await self._in_one(work)

    async def pieces(self, places: Sequence[tuple[str, int]], limit_bytes: int) -> list[Piece]:
        """Return what comes next of runs, each from a seq on, until `limit_bytes` are reached.

        The seq must be the first of a frame, or the one behind the last.
        """

        def work(db: sqlite3.Connection) -> list[Piece]:
            found: list[Piece] = []
            left = limit_bytes
            for run_id, seq in places:
                for number, *row in db.execute(_RUN, (run_id,)).fetchall():
                    piece = _piece(db, number, tuple(row), seq, left)
                    found.append(piece)
                    left -= sum(len(frame.data) for frame in piece.frames)
                if left <= 0:
                    break
            return found

        def at_one_moment(db: sqlite3.Connection) -> list[Piece]:
            db.execute("begin")
            try:
                return work(db)
            finally:
                db.execute("rollback")

        return await self._read(at_one_moment)

    async def _in_one(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._write(lambda db: statements.transaction(db, lambda: work(db)))


def _ids(number: int, seq: int) -> tuple[int, int]:
    first = number << statements.SEQ_BITS
    return first + seq, first + statements.SEQ_MAX


def _piece(
    db: sqlite3.Connection, number: int, row: tuple[object, ...], seq: int, limit_bytes: int
) -> Piece:
    sound = not is_damaged(row)
    frames: list[StoredFrame] = []
    for place, *rest in db.execute(_FRAMES, _ids(number, seq)):
        if not all(map(isinstance, rest, _FRAME_TYPES)):
            sound = False
            break
        frames.append(StoredFrame(place & statements.SEQ_MAX, *rest))
        limit_bytes -= len(frames[-1].data)
        if limit_bytes <= 0:
            break
    waits = db.execute(_WAITS, (number,)).fetchall()
    sound = sound and all(all(map(isinstance, wait, _WAIT_TYPES)) for wait in waits)
    return Piece(run_of(row), frames, [WaitRecord(*wait) for wait in waits], not sound)
