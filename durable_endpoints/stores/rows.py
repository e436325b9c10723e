"""A run's row in SQLite, and what becomes of one that is damaged."""

from __future__ import annotations

from typing import Any, Final, get_args

from durable_endpoints.limits import FAR_MS, RUN_ENTRIES_MAX
from durable_endpoints.records import RunRecord, Status
from durable_endpoints.states import UNFINISHED

_STATUSES: Final[tuple[Status, ...]] = get_args(Status)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_status(value: Any) -> bool:
    return value in _STATUSES


def _is_count(value: Any) -> bool:
    return type(value) is int


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value <= FAR_MS


def _may_be_text(value: Any) -> bool:
    return value is None or type(value) is str


def _may_be_count(value: Any) -> bool:
    return value is None or _is_count(value)


# Of each column, what it may hold, and what stands in its place where it holds something else.
_COLUMNS: Final = (
    ("run_id", _is_text, ""),
    ("name", _is_text, "damaged"),
    ("status", _is_status, "dead"),
    ("created_at_ms", _is_time, 0),
    ("updated_at_ms", _is_time, 0),
    ("epoch", _is_count, 0),
    ("last_seq", _is_count, RUN_ENTRIES_MAX),
    ("events", _is_count, 0),
    ("attempts", _is_count, 0),
    ("version", _is_text, ""),
    ("principal", _may_be_text, "\0"),  # nobody's: not what is shown to all (I18)
    ("idempotency_key", _may_be_text, None),
    ("fingerprint", _may_be_text, None),
    ("error", _may_be_text, None),
    ("wake_at_ms", _may_be_count, None),
    ("waiting", _may_be_text, None),
    ("parent", _may_be_text, None),
    ("concurrency_key", _may_be_text, None),
    ("labels", _may_be_text, None),
)
ROW: Final = ", ".join(name for name, _, _ in _COLUMNS)
DAMAGED: Final = "damaged: its row"


def is_damaged(row: tuple[Any, ...]) -> bool:
    """Say whether a value of a row of `ROW` cannot be one of its column.

    SQLite does not hold what it reads against a column's type (I20).
    """
    return not all(fits(value) for value, (_, fits, _) in zip(row, _COLUMNS, strict=True))


def run_of(row: tuple[Any, ...]) -> RunRecord:
    """Return the run of a row of `ROW`.

    That of a damaged one is dead, and longer than its journal: lists show it, and who comes to it
    is told that it is damaged.
    """
    if not is_damaged(row):
        return RunRecord(*row)
    columns = zip(row, _COLUMNS, strict=True)
    values: list[Any] = [value if fits(value) else other for value, (_, fits, other) in columns]
    record = RunRecord(*values)
    if record.status in UNFINISHED:
        record.status = "dead"
    record.last_seq, record.error = max(0, record.last_seq) + 1, DAMAGED
    return record
