"""Forks: a new run from a point of another one, and the two beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
from starlette.responses import RedirectResponse, Response

from durable_endpoints.console import deeds, inert, reading
from durable_endpoints.console.auth import Refused
from durable_endpoints.console.digest import origin_of
from durable_endpoints.console.run_pages import about
from durable_endpoints.errors import Overloaded
from durable_endpoints.ids import RUN_ID
from durable_endpoints.records import Entry, Kind

if TYPE_CHECKING:
    from durable_endpoints.console.visit import Visit

# Beyond these nobody reads a comparison line by line: download both and use a diff.
ENTRIES_MAX: Final = 5_000
ROWS_MAX: Final = 500
_TEXT_CHARS_MAX: Final = 20_000
_OUTCOMES: Final = frozenset(
    {Kind.STEP, Kind.STEP_FAILED, Kind.STREAM_END, Kind.RECEIVED, Kind.FIRED}
)


async def fork(visit: Visit) -> Response:
    """Begin a run that shares the run's journal up to an entry, with what a form changes."""
    form = await deeds.read(visit, visit.run_id, "fork")
    outcome = "failed"
    try:
        record = await visit.record()
        before = form.get("before", "")
        if not (before.isascii() and before.isdigit()):
            raise _no_entry(before)
        results = {form["key"]: _json(form["result"])} if "result" in form else {}
        # A browser sends every line end as CR LF.
        text = form.get("input")
        payload = None if text is None else text.replace("\r\n", "\n").encode()
        run = await visit.engine.observe(record.run_id, record.principal)
        forked = await visit.engine.fork(
            run, int(before[:9]), payload=payload, results=results, by=visit.visitor.name
        )
        outcome = f"begun: {forked.id}"
    except Refused as error:
        outcome = f"refused: {error.title.lower()}"
        raise
    except ValueError as error:
        outcome = "refused: no such entry"
        raise _no_entry(form.get("before", "")) from error
    except Overloaded as error:
        outcome = "refused: overloaded"
        raise Refused(503, "Not now", f"{error}.") from error
    finally:
        deeds.note(visit, visit.run_id, outcome, "fork")
    return RedirectResponse(visit.url(f"/console/runs/{forked.id}"), 303)


def _no_entry(before: str) -> Refused:
    return Refused(422, "No such entry", f"The run has no entry {before[:20]} to fork before.")


def _json(text: str) -> bytes:
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError as error:
        said = f"A result is JSON, and this is none: {error}."
        raise Refused(400, "Not JSON", said) from None


@dataclass(frozen=True, slots=True)
class Line:
    """One call in both runs; a text is empty where there was no such call."""

    key: str
    left: str
    right: str
    shared: bool

    @property
    def differs(self) -> bool:
        """Whether the two runs got different outcomes."""
        return self.left != self.right


def beside(origin: Iterable[Entry], forked: Iterable[Entry], before: int) -> list[Line]:
    """Return the outcomes of two runs' calls, side by side, in the order they came."""
    left = {e.key: e for e in origin if e.kind in _OUTCOMES}
    right = {e.key: e for e in forked if e.kind in _OUTCOMES}
    keys = list(left) + [key for key in right if key not in left]
    return [
        Line(key, _said(left.get(key)), _said(right.get(key)),
             key in left and left[key].seq < before)
        for key in keys
    ]  # fmt: skip


def _said(entry: Entry | None) -> str:
    if entry is None:
        return ""
    text = inert.line(entry.payload, 600)
    return f"{'failed: ' if entry.kind == Kind.STEP_FAILED else ''}{text or 'done'}"


def body_of(entries: Iterable[Entry]) -> str:
    """Return what a run answered, as far as it is shown."""
    data = bytearray()
    for entry in entries:
        if entry.kind == Kind.CHUNK and len(data) < 4 * _TEXT_CHARS_MAX:
            data += entry.payload
    return inert.shown(bytes(data), _TEXT_CHARS_MAX)


async def compare(visit: Visit) -> Response:
    """A fork beside its origin: outcomes of calls, and what was answered."""
    record = await visit.record()
    forked = await reading.page(visit.store, record.run_id, 0, ENTRIES_MAX)
    origin = origin_of(forked[0]) if forked else None
    if origin is None or not RUN_ID.fullmatch(origin[0]):
        raise Refused(404, "Not a fork", "The run was not forked from another one.")
    known = await visit.record(origin[0])
    first = await reading.page(visit.store, known.run_id, 0, ENTRIES_MAX)
    lines = beside(first, forked, origin[1])
    return visit.page(
        "compare.html", origin=known, before=origin[1], lines=lines[:ROWS_MAX],
        left_out=max(0, len(lines) - ROWS_MAX), bodies=(body_of(first), body_of(forked)),
        **await about(visit, record, "compare"),
    )  # fmt: skip
