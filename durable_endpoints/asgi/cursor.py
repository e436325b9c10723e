"""Where a reader wants to go on: `<run id>:<offset>-<hash>`, a bare offset, or an app's own id."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from durable_endpoints.asgi.problems import Problem
from durable_endpoints.asgi.sse import own_id
from durable_endpoints.engine.reader import event_at, stored_events
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.ids import RUN_ID
from durable_endpoints.limits import CURSOR_CHARS_MAX
from durable_endpoints.records import Kind
from durable_endpoints.stores.protocol import Store

_OURS: Final = re.compile(rf"({RUN_ID.pattern}):(\d{{1,9}})-([0-9a-f]{{8}})", re.ASCII)
_BARE: Final = re.compile(r"\d{1,9}", re.ASCII)


class Cursor(NamedTuple):
    """The last event that a reader has."""

    run_id: str
    offset: int
    crc: int


def parse(text: str | None) -> Cursor | None:
    """Return an id of ours; None if it is not one."""
    if text is None or len(text) > CURSOR_CHARS_MAX:
        return None
    match = _OURS.fullmatch(text.strip())
    if match is None:
        return None
    return Cursor(match[1], int(match[2]), int(match[3], 16))


async def resolve(store: Store, run: LiveRun, text: str | None, *, rewinds: bool) -> int:
    """Return the offset of the first event to send.

    Raises: Problem 400 for a cursor that is none, 409 for one that the journal does not bear out;
    RunDeleted, Corrupt.
    """
    if text is None or not text.strip():
        return 0
    text = text.strip()
    if len(text) > CURSOR_CHARS_MAX:
        raise _malformed()
    ours = parse(text)
    if ours is not None:
        if ours.run_id != run.id:
            raise Problem(400, "malformed-cursor", "the cursor belongs to another run")
        offset = ours.offset
    elif _BARE.fullmatch(text):
        offset = int(text)
    else:
        offset = await _find_own(store, run, text)
    event = await event_at(store, run, offset)
    if event is None:
        detail = f"the run has {run.durable_offset} events, the cursor is at {offset}"
        raise Problem(409, "cursor-ahead", detail)
    if ours is not None and event.crc != ours.crc:
        detail = (
            "the run's history is not the one that this cursor comes from (a restored backup, or "
            "a lossy fail-over): start again without a cursor"
        )
        raise Problem(409, "history-diverged", detail)
    if not rewinds and is_rewound(run, offset):
        detail = (
            "what the cursor stands on was taken back after a crash; start again without a "
            "cursor, or ask for control events with Durable-Events: 1"
        )
        raise Problem(409, "rewound", detail)
    return offset + 1


def is_rewound(run: LiveRun, offset: int) -> bool:
    """Say whether a durable rewind has taken an event back."""
    return any(to < offset < at for at, to in run.rewinds if at < run.durable_offset)


async def _find_own(store: Store, run: LiveRun, text: str) -> int:
    """Return the offset of the last event to which the app gave this id."""
    offset, found = 0, None
    while offset < run.durable_offset:
        events = await stored_events(store, run, offset)
        for event in events:
            if event.kind == Kind.CHUNK and own_id(event.payload) == text:
                found = event.offset
        offset = events[-1].offset + 1
    if found is None:
        raise _malformed()
    return found


def _malformed() -> Problem:
    detail = "the cursor is neither an event id of this run nor an offset"
    return Problem(400, "malformed-cursor", detail)
