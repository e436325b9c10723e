"""What the control routes show of runs and entries, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson
from starlette.responses import Response

from durable_endpoints.labels import parsed
from durable_endpoints.records import Entry, RunRecord
from durable_endpoints.states import ENDED

_SHOWN_BYTES: Final = 2048
_NO_STORE: Final = {"cache-control": "no-store"}


def json(data: object, status: int = 200, **headers: str) -> Response:
    """Return a JSON response."""
    more = {**_NO_STORE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Response(orjson.dumps(data), status, more, "application/json")


def run_fields(record: RunRecord, *, full: bool) -> dict[str, Any]:
    """Return a run as JSON; the text of an error is for operators, its type for everybody."""
    error = record.error if full or record.error is None else record.error.partition(":")[0]
    return {
        "id": record.run_id,
        "name": record.name,
        "status": record.status,
        "version": record.version,
        "attempts": record.attempts + 1,
        "events": record.events,
        "entries": record.last_seq + 1,
        "created_at": iso(record.created_at_ms),
        "updated_at": iso(record.updated_at_ms),
        "ended": record.status in ENDED,
        "error": error,
        "waiting": orjson.loads(record.waiting) if record.waiting else None,
        "wake_at": None if record.wake_at_ms is None else iso(record.wake_at_ms),
        "parent": record.parent,
        "labels": parsed(record.labels),
    }


def entry_fields(entry: Entry) -> dict[str, Any]:
    """Return a journal entry as JSON."""
    return {
        "seq": entry.seq,
        "kind": entry.kind.name.lower(),
        "key": entry.key,
        "at": iso(entry.at_ms),
        "took_us": entry.took_us,
        "args": entry.args.decode(errors="replace"),
        "payload": entry.payload[:_SHOWN_BYTES].decode(errors="replace"),
        "size": len(entry.payload),
    }


def iso(at_ms: int) -> str:
    """Return a time as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
