"""New runs in SQLite: the row and the first frame of each, all of a batch by one statement.

Between two statements the writer's thread lets the interpreter go, and a busy event loop may keep
it for milliseconds. So what most batches are made of goes in by one, which is its own transaction.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from durable_endpoints.records import Frame

# 22 values a row, and SQLites before 3.32 take 999 (https://sqlite.org/limits.html#max_variable_number).
ROWS_MAX: Final = 32
_RUN: Final = (
    "no", "run_id", "name", "status", "created_at_ms", "updated_at_ms", "epoch", "last_seq",
    "events", "version", "principal", "idempotency_key", "fingerprint", "error", "wake_at_ms",
    "waiting", "parent", "concurrency_key",
)  # fmt: skip
_FRAME: Final = ("entries", "first_offset", "hash_in", "data")


def _new(names: Sequence[str]) -> str:
    return ", ".join(f"new.{name}" for name in names)


# Of this connection alone: nothing of it is in the file.
PREPARE: Final = f"""
pragma temp_store = memory;
create temp view openings ({", ".join((*_RUN, *_FRAME))})
  as select {", ".join("0" for _ in (*_RUN, *_FRAME))};
create temp trigger openings_go_in instead of insert on openings begin
  insert into runs ({", ".join(_RUN)}, attempts) values ({_new(_RUN)}, 0);
  insert into frames (id, events, epoch, {", ".join(_FRAME)})
    values (new.no << 20, new.events, new.epoch, {_new(_FRAME)});
end;
"""  # noqa: S608 - names of columns


@cache
def _statement(rows: int) -> str:
    row = f"({', '.join('?' * (len(_RUN) + len(_FRAME)))})"
    return f"insert into openings values {', '.join([row] * rows)}"  # noqa: S608 - question marks


def insert(db: sqlite3.Connection, batch: Sequence[Frame], numbers: Mapping[str, int]) -> None:
    """Write the first frames of runs, and the runs. Nobody else can know them: none is fenced."""
    for at in range(0, len(batch), ROWS_MAX):
        rows = [_row(numbers[frame.run_id], frame) for frame in batch[at : at + ROWS_MAX]]
        db.execute(_statement(len(rows)), tuple(chain.from_iterable(rows)))


def _row(number: int, frame: Frame) -> tuple[Any, ...]:
    run = frame.opening
    assert run is not None
    assert frame.first_seq == 0
    return (
        number, run.run_id, run.name, frame.status, run.created_at_ms, frame.at_ms, frame.epoch,
        frame.last_seq, frame.events, run.version, run.principal, run.idempotency_key,
        run.fingerprint, frame.error, frame.wake_at_ms, frame.waiting, run.parent,
        run.concurrency_key, frame.entries, frame.first_offset, frame.hash_in, frame.data,
    )  # fmt: skip
