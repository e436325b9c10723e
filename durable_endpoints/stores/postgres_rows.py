"""Frames and runs as PostgreSQL takes them: columns of a batch, rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from durable_endpoints.records import Frame, RunRecord, WaitRecord
from durable_endpoints.stores.protocol import Begun
from durable_endpoints.stores.waits import fields_of

ROW: Final = (
    "run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events, attempts,"
    " version, principal, idempotency_key, fingerprint, error, wake_at_ms, waiting, parent,"
    " concurrency_key, labels"
)
WAIT_ROW: Final = "run_id, ident, kind, name, since_ms, until_ms, match, summary, principal"

# PostgreSQL's text holds every character but U+0000. A private one stands for it, and for itself.
_MARK: Final = "\ue000"
_TEXTS: Final = {1, 9, 10, 11, 12, 13, 15, 17}  # columns of ROW that come from outside
_WAIT_TEXTS: Final = {1, 3, 6, 7, 8}


def packed(text: str | None) -> str | None:
    """Return a text as it is stored."""
    if text is not None and ("\0" in text or _MARK in text):
        return text.replace(_MARK, _MARK + "1").replace("\0", _MARK + "0")
    return text


def unpacked(text: str | None) -> str | None:
    """Return a text as it was before `packed`."""
    if text is not None and _MARK in text:
        return text.replace(_MARK + "0", "\0").replace(_MARK + "1", _MARK)
    return text


def run_of(row: Iterable[Any]) -> RunRecord:
    """Return a run from its row."""
    values: list[Any] = [unpacked(v) if i in _TEXTS else v for i, v in enumerate(row)]
    return RunRecord(*values)


def wait_of(row: Iterable[Any]) -> WaitRecord:
    """Return an open wait from its row."""
    values: list[Any] = [unpacked(v) if i in _WAIT_TEXTS else v for i, v in enumerate(row)]
    return WaitRecord(*values)


def begun_of(row: Sequence[Any]) -> Begun:
    """Return a count of runs from its row."""
    minute, name, status, runs, ids = row
    return Begun(minute, unpacked(name) or "", status, runs, tuple(ids or ()))


def columns(rows: Sequence[Any], cells: Sequence[Callable[[Any], Any]]) -> list[list[Any]]:
    """Return one list a column."""
    return [[cell(row) for row in rows] for cell in cells]


_FRAME: Final[tuple[Callable[[Frame], Any], ...]] = (
    lambda f: f.run_id, lambda f: f.epoch, lambda f: f.first_seq, lambda f: f.entries,
    lambda f: f.first_offset, lambda f: f.events, lambda f: f.hash_in, lambda f: f.data,
    lambda f: f.at_ms, lambda f: f.status, lambda f: packed(f.error), lambda f: f.progress,
    lambda f: f.wake_at_ms, lambda f: packed(f.waiting),
)  # fmt: skip
_OPENING: Final[tuple[Callable[[RunRecord], Any], ...]] = (
    lambda r: r.run_id, lambda r: packed(r.name), lambda r: r.created_at_ms, lambda r: r.attempts,
    lambda r: packed(r.version), lambda r: packed(r.principal),
    lambda r: packed(r.idempotency_key), lambda r: packed(r.fingerprint), lambda r: r.parent,
    lambda r: packed(r.concurrency_key),
)  # fmt: skip
_WAIT: Final[tuple[Callable[[WaitRecord], Any], ...]] = (
    lambda w: w.run_id, lambda w: packed(w.ident), lambda w: w.kind, lambda w: packed(w.name),
    lambda w: w.since_ms, lambda w: w.until_ms, lambda w: packed(fields_of(w.match)),
    lambda w: packed(w.match), lambda w: packed(w.summary), lambda w: packed(w.principal),
)  # fmt: skip


def arguments(batch: Sequence[Frame], node: str) -> tuple[tuple[str, ...], list[Any]]:
    """Return the sections of append.sql that a batch needs, and its arguments."""
    openings = [frame.opening for frame in batch if frame.opening is not None]
    values: list[Any] = [*columns(batch, _FRAME), sorted(_locked(batch))]
    waits = any(f.waits or f.answered or f.wakes or f.labels for f in batch)
    freed = ("freed",) if any(f.frees for f in batch) else ()
    if not openings and not waits:
        return freed, values
    values += [*columns(openings, _OPENING), node]
    keys = any(run.concurrency_key is not None for run in openings)
    if not waits and not keys:
        return ("openings", *freed), values
    values += _waits(batch)
    if not keys:
        return ("openings", "waits", *freed), values
    exclusive = [run.exclusive for run in openings]
    return ("openings", "waits", "keys", *freed), [*values, exclusive]


def _locked(batch: Sequence[Frame]) -> set[str]:
    wakes = {frame.wakes for frame in batch if frame.wakes is not None}
    return wakes.union(frame.run_id for frame in batch)


def _waits(batch: Sequence[Frame]) -> list[Any]:
    # A statement changes a row once: what is opened and over in one frame is not opened.
    waits = [
        wait
        for frame in batch
        for wait in frame.waits
        if not {"*", wait.ident} & set(frame.answered)
    ]
    answered = [(frame.run_id, packed(ident)) for frame in batch for ident in frame.answered]
    return [
        [frame.wakes for frame in batch],
        *columns(waits, _WAIT),
        [run_id for run_id, _ in answered],
        [ident for _, ident in answered],
        [frame.labels for frame in batch],
    ]
