"""A run's events, shown live: rendered on the server, so that nothing in them can act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
from starlette.responses import StreamingResponse

from durable_endpoints.console import reading
from durable_endpoints.engine.reader import Reader
from durable_endpoints.records import Entry, Kind
from durable_endpoints.states import ENDED

if TYPE_CHECKING:
    from durable_endpoints.console.visit import Visit
    from durable_endpoints.records import RunRecord

EVENTS_SHOWN: Final = 300
_PIECE: Final = 200
# A page that is redrawn more often than this is no easier to read, and each time costs the runs.
_PAUSE_S: Final = 0.5
_BEAT_S: Final = 15.0
_LOOK_S: Final = 1.0
HEARTBEAT: Final = b": hb\n"


@dataclass(frozen=True, slots=True)
class Block:
    """One event as it is shown. `name` is its SSE event name, `text` what its client got."""

    offset: int
    sort: str
    at_ms: int
    name: str
    text: str
    size: int
    gone: bool


def blocks(found: Sequence[tuple[int, Entry]], gone: Sequence[tuple[int, int]] = ()) -> list[Block]:
    """Return events as they are shown; `gone` are (after, before) offsets that were taken back."""
    return [_block(offset, entry, gone) for offset, entry in found]


def _block(offset: int, entry: Entry, gone: Sequence[tuple[int, int]]) -> Block:
    name, text = "", entry.payload.decode(errors="replace")
    sort = entry.kind.name.lower()
    if entry.kind == Kind.HEAD:
        head = orjson.loads(entry.payload)
        text = "\n".join([f"HTTP {head['status']}", *(f"{k}: {v}" for k, v in head["headers"])])
    elif entry.kind == Kind.REWIND:
        text = f"events after {orjson.loads(entry.payload)['to']} were taken back"
    elif text.endswith("\n\n") and text.startswith(("data:", "event:", "id:", "retry:", ":")):
        name, text = _sse(text)
    taken = any(after < offset < before for after, before in gone)
    return Block(offset, sort, entry.at_ms, name, text, len(entry.payload), taken)


def _sse(block: str) -> tuple[str, str]:
    """Return the name and the data of an SSE event; what has no data stays as it is."""
    name, data = "", []
    for line in block.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    return (name, "\n".join(data)) if data else (name, block.rstrip("\n"))


async def follow(visit: Visit) -> StreamingResponse:
    """GET events.sse: further events, rendered, until the run has ended."""
    record = await visit.record()
    last = visit.request.headers.get("last-event-id") or visit.request.query_params.get("after", "")
    offset = int(last[:12]) + 1 if last.isascii() and last.isdigit() else 0
    as_text = visit.request.query_params.get("as") == "text"
    headers = {"x-accel-buffering": "no", "cache-control": "no-cache, no-transform"}
    return StreamingResponse(
        _follow(visit, record, offset, as_text=as_text), 200, headers, "text/event-stream"
    )


async def _follow(
    visit: Visit, record: RunRecord, offset: int, *, as_text: bool
) -> AsyncIterator[bytes]:
    template = visit.template("event_rows.html")
    reader = None
    if record.status not in ENDED:
        run = await visit.engine.observe(record.run_id, record.principal)
        reader = Reader(visit.store, run, offset)
    silent_s = 0.0
    yield b": here\n\n"
    while not visit.engine.draining:
        found = await reading.events(visit.store, record.run_id, offset, _PIECE)
        if found:
            offset, silent_s = found[-1][0] + 1, 0.0
            html = template.render(blocks=blocks(found), as_text=as_text)
            yield _event(offset - 1, html)
            if reader is not None and len(found) < _PIECE:
                await asyncio.sleep(_PAUSE_S)
            continue
        fresh = await visit.store.get(record.run_id)
        if reader is None or fresh is None or (fresh.status in ENDED and fresh.events <= offset):
            yield b"event: end\ndata: end\n\n"
            return
        if not await reader.moved(_LOOK_S):
            silent_s += _LOOK_S
        if silent_s >= _BEAT_S:
            silent_s = 0.0
            yield HEARTBEAT


def _event(offset: int, html: str) -> bytes:
    data = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"id: {offset}\n{data}\n".encode()
