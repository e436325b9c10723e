"""The SQLite statements of open waits: who waits for which signal, found by name and fields."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

import orjson

from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.records import Frame, WaitRecord
from durable_endpoints.stores.protocol import WaitQuery

_ROW: Final = "run_id, ident, kind, name, since_ms, until_ms, match, summary, principal"
_OPEN: Final = (
    f"insert or replace into waits (no, fields, {_ROW})"  # noqa: S608 - names of columns
    f" select no, ?, {', '.join('?' * 9)} from runs where run_id = ?"
)
_ANSWER: Final = (
    "delete from waits where no = (select no from runs where run_id = ?1)"
    " and (?2 = '*' or ident = ?2)"
)
_WAKE: Final = "update runs set wake_at_ms = 0 where run_id = ? and status = 'suspended'"
# The next set of fields that waits of a name match by: one index look-up a set.
_NEXT_FIELDS: Final = "select min(fields) from waits where name = ? and fields > ?"


def fields_of(match: str | None) -> str:
    """Return the names of the fields that a wait matches by."""
    return orjson.dumps(sorted(orjson.loads(match))).decode() if match else ""


def match_of(fields: str, payload: Any) -> str | None:
    """Return what a wait on these fields matches if it matches a payload; None if none does."""
    names = orjson.loads(fields)
    if not all(name in payload for name in names):
        return None
    chosen = {name: payload[name] for name in names}
    return orjson.dumps(chosen, option=orjson.OPT_SORT_KEYS).decode()


def follow(db: sqlite3.Connection, frame: Frame) -> None:
    """Open and answer the waits of a frame that was written, and wake whom it wakes."""
    for wait in frame.waits:
        row = (
            wait.run_id, wait.ident, wait.kind, wait.name, wait.since_ms, wait.until_ms,
            wait.match, wait.summary, wait.principal,
        )  # fmt: skip
        db.execute(_OPEN, (fields_of(wait.match), *row, wait.run_id))
    for ident in frame.answered:
        db.execute(_ANSWER, (frame.run_id, ident))
    if frame.wakes is not None:
        db.execute(_WAKE, (frame.wakes,))


def find(db: sqlite3.Connection, query: WaitQuery) -> list[WaitRecord]:
    """Return open waits. See `Store.waits`."""
    terms: list[str] = []
    values: list[Any] = []
    for column, value in (("name", query.name), ("run_id", query.run_id)):
        if value is not None:
            terms.append(f"{column} = ?")
            values.append(value)
    if query.kinds:
        terms.append(f"kind in ({', '.join('?' * len(query.kinds))})")
        values += query.kinds
    if not query.any_principal:
        terms.append("principal is ?")
        values.append(query.principal)
    if query.payload is not None:
        choices = _choices(db, query)
        if not choices:
            return []
        terms.append(f"({' or '.join('(fields = ? and match = ?)' for _ in choices)})")
        for fields, match in choices:
            values += [fields, match]
    where = f"where {' and '.join(terms)}" if terms else ""
    values.append(min(query.limit, LIST_ROWS_MAX))
    sql = f"select {_ROW} from waits {where} order by no, ident limit ?"  # noqa: S608
    return [WaitRecord(*row) for row in db.execute(sql, values).fetchall()]


def _choices(db: sqlite3.Connection, query: WaitQuery) -> list[tuple[str, str]]:
    """Return (fields, match) of the waits that the payload of an event can answer."""
    found: list[tuple[str, str]] = []
    fields = ""  # waits that match on no field are found by their run only
    while (row := db.execute(_NEXT_FIELDS, (query.name, fields)).fetchone()) and row[0]:
        fields = row[0]
        match = match_of(fields, query.payload)
        if match is not None:
            found.append((fields, match))
    return found
