"""Pages of one run: its course, request, events, journal; and the actions on it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response, StreamingResponse

from durable_endpoints.console import drawing, reading, words
from durable_endpoints.console.actions import BY_NAME, actions_for
from durable_endpoints.console.auth import Refused
from durable_endpoints.console.offers import offers
from durable_endpoints.console.streaming import EVENTS_SHOWN, blocks
from durable_endpoints.engine.reader import lost
from durable_endpoints.errors import Corrupt, RunDeleted, StreamAborted
from durable_endpoints.llm.usage import usage_fields
from durable_endpoints.records import Kind
from durable_endpoints.states import ENDED
from durable_endpoints.stores.protocol import WaitQuery

if TYPE_CHECKING:
    from durable_endpoints.console.digest import Digest
    from durable_endpoints.console.visit import Visit
    from durable_endpoints.records import Entry, RunRecord, WaitRecord

JOURNAL_ROWS: Final = 100
GROUPS_SHOWN: Final = 100
_TIME_MAX_US: Final = 10**15


async def about(visit: Visit, record: RunRecord, tab: str) -> dict[str, Any]:
    """Return what the part above the tabs shows."""
    waits: Sequence[WaitRecord] = ()
    if record.status in ("running", "suspended"):
        waits = await visit.store.waits(WaitQuery(run_id=record.run_id))
    return {
        "open_waits": waits, "answers": visit.answers,
        "run": record, "tab": "runs", "run_tab": tab, "ended": record.status in ENDED,
        "actions": actions_for(record) if visit.visitor.may_act else [],
        "done": BY_NAME.get(visit.request.query_params.get("done", "")),
        **visit.state(record),
    }  # fmt: skip


async def head(visit: Visit) -> Response:
    """What is true of the run now: the part above the tabs."""
    return visit.page("run_head.html", **await about(visit, await visit.record(), ""))


async def timeline(visit: Visit) -> Response:
    """What the run did, and when."""
    record = await visit.record()
    damage = ""
    try:
        digest = await visit.console.digests.of(record.run_id)
    except Corrupt as error:
        digest, damage = visit.console.digests.known(record.run_id), str(error)
    ended = record.status in ENDED or record.status == "diverged"
    began_ms = digest.began_ms or visit.now_ms
    now_us = None if ended else max(0, visit.now_ms - began_ms) * 1000
    window = _window(visit)
    drawn = drawing.draw(digest, now_us, window)
    values = {
        **await about(visit, record, "timeline"), "digest": digest, "drawing": drawn,
        "zooms": drawing.zooms(drawn), "groups": _groups(digest), "damage": damage,
        "window": window, "groups_left": max(0, len(digest.groups) - GROUPS_SHOWN),
        "bins": drawing.BINS, "now_us": now_us,
        "usage": usage_fields(visit.console.digests.usage(record.run_id), visit.prices),
    }  # fmt: skip
    return visit.page("timeline_live.html" if visit.partial else "timeline.html", **values)


def _window(visit: Visit) -> tuple[int, int] | None:
    """Return the part of the time that is asked for, in microseconds."""
    params = visit.request.query_params
    begin, end = params.get("from", ""), params.get("to", "")
    if not (begin.isascii() and begin.isdigit() and end.isascii() and end.isdigit()):
        return None
    found = min(int(begin[:16]), _TIME_MAX_US), min(int(end[:16]), _TIME_MAX_US)
    return found if found[0] < found[1] else None


def _groups(digest: Digest) -> list[tuple[str, Any]]:
    return sorted(digest.groups.items(), key=lambda item: -item[1].total_us)[:GROUPS_SHOWN]


async def request(visit: Visit) -> Response:
    """The request as it was kept, and the response's head."""
    record = await visit.record()
    found = await reading.page(visit.store, record.run_id, 0, 1)
    if not found or found[0].kind != Kind.STARTED:
        what = "its journal does not begin with its start"
        raise await lost(visit.store, record.run_id, what)
    meta = orjson.loads(found[0].args)
    first = await reading.events(visit.store, record.run_id, 0, 1)
    if record.events and not first:
        raise await lost(visit.store, record.run_id, "its events are missing")
    head = first[0][1] if first and first[0][1].kind == Kind.HEAD else None
    return visit.page(
        "request.html", meta=meta, body=found[0].payload,
        head=orjson.loads(head.payload) if head else None, **await about(visit, record, "request"),
    )  # fmt: skip


async def events(visit: Visit) -> Response:
    """The response as its client saw it, event by event or as text; live while it comes."""
    record = await visit.record()
    as_text = visit.request.query_params.get("as") == "text"
    asked = visit.request.query_params.get("from", "")
    at = int(asked[:12]) if asked.isascii() and asked.isdigit() else None
    begin = max(0, record.events - EVENTS_SHOWN) if at is None else at
    found = await reading.events(visit.store, record.run_id, begin, EVENTS_SHOWN)
    upto = found[-1][0] if found else begin - 1
    digest = await visit.console.digests.of(record.run_id)  # knows what was taken back
    return visit.page(
        "events.html", begin=begin, upto=upto, as_text=as_text, shown_max=EVENTS_SHOWN,
        blocks=blocks(found, digest.rewinds),
        live=upto + 1 >= record.events and record.status not in ENDED,
        **await about(visit, record, "events"),
    )  # fmt: skip


async def journal(visit: Visit) -> Response:
    """The journal, a page at a time."""
    record = await visit.record()
    asked = visit.request.query_params.get("from", "0")
    begin = int(asked[:9]) if asked.isascii() and asked.isdigit() else 0
    damage, found = "", []
    try:
        found = await reading.page(visit.store, record.run_id, begin, JOURNAL_ROWS)
    except Corrupt as error:
        damage = str(error)
    return visit.page(
        "journal.html", entries=found, begin=begin, rows=JOURNAL_ROWS, damage=damage,
        **await about(visit, record, "journal"),
    )  # fmt: skip


async def entry(visit: Visit) -> Response:
    """One entry: arguments, result or error, whole."""
    record = await visit.record()
    seq = int(visit.request.path_params["seq"])
    found = await reading.page(visit.store, record.run_id, seq, 1)
    if not found:
        raise Refused(404, "No such entry", f"The journal has no entry {seq}.")
    error = None
    if found[0].kind in (Kind.STEP_FAILED, Kind.ATTEMPT):
        error = orjson.loads(found[0].payload)
    forks = offers(found[0]) if visit.visitor.may_act else []
    values = {
        "entry": found[0],
        "failure": error,
        "forks": forks,
        **await about(visit, record, "journal"),
    }
    return visit.page("entry_part.html" if visit.partial else "entry.html", **values)


async def download(visit: Visit) -> Response:
    """The whole run as JSON, as a file."""
    record = await visit.record()
    name = f"run-{record.run_id}.json"
    return StreamingResponse(
        _export(visit, record), 200, {"content-disposition": f'attachment; filename="{name}"'},
        "application/json",
    )  # fmt: skip


async def _export(visit: Visit, record: RunRecord) -> AsyncIterator[bytes]:
    fields = {name: getattr(record, name) for name in type(record).__slots__}
    yield b'{"run":' + orjson.dumps(fields) + b',"entries":['
    separator = b""
    try:
        async for entries in reading.pieces(visit.store, record.run_id, last=record.last_seq):
            yield separator + b",\n".join(orjson.dumps(_exported(entry)) for entry in entries)
            separator = b",\n"
    except (RunDeleted, Corrupt) as reason:
        raise StreamAborted(f"the journal of run {record.run_id} ends early: {reason}") from None
    yield b"]}\n"


def _exported(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq, "kind": entry.kind.name.lower(), "key": entry.key,
        "at": words.iso(entry.at_ms), "took_us": entry.took_us, "check": entry.check,
        **_text("args", entry.args), **_text("payload", entry.payload),
    }  # fmt: skip


def _text(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
