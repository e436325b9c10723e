"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from durable_endpoints.asgi.fields import iso, run_fields
from durable_endpoints.errors import (
    AlreadyAnswered,
    Corrupt,
    DurableError,
    NotSerializable,
    Overloaded,
    PayloadTooLarge,
    RunDeleted,
    RunEnded,
    RunNotFound,
    SignalRefused,
    StoreError,
)
from durable_endpoints.links import BadLink, ExpiredLink
from durable_endpoints.records import RunRecord

if TYPE_CHECKING:
    from starlette.types import Send

_TYPES: Final = "https://durable-endpoints.dev/problems/"


class Problem(Exception):
    """A request that gets a problem as its answer."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Sequence[tuple[str, str]] = (),
        fields: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, kind, detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.fields = fields or {}

    def body(self) -> bytes:
        """Return the problem's JSON."""
        title = self.kind.replace("-", " ").capitalize()
        fields = {"type": _TYPES + self.kind, "title": title, "status": self.status}
        return orjson.dumps({**fields, "detail": self.detail, **self.fields})

    async def answer(self, send: Send, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Send it, with `more` headers."""
        body = self.body()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *((name.encode(), value.encode()) for name, value in self.headers),
            *more,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def not_found() -> Problem:
    """Unknown and foreign runs get the same answer (I18)."""
    return Problem(404, "run-not-found", "there is no such run")


def as_problem(error: DurableError) -> Problem:
    """Return what a client is told of an error below.

    Raises: the error, if it is a bug.
    """
    if isinstance(error, AlreadyAnswered):
        first = orjson.loads(error.answer)
        answer = {"data": first["data"], "by": first["by"], "at": iso(first["at"])}
        return Problem(409, "already-answered", str(error), fields={"answer": answer})
    if isinstance(error, RunDeleted):
        return Problem(410, "run-deleted", "the run was deleted")
    if isinstance(error, RunNotFound):
        return not_found()
    for kind, status, name in _KNOWN:
        if isinstance(error, kind):
            return Problem(status, name, str(error))
    if isinstance(error, Overloaded):
        return overloaded(str(error))
    if not isinstance(error, StoreError):
        raise error
    if isinstance(error, Corrupt):
        return Problem(500, "run-damaged", "the run's journal is damaged")
    detail = "the journal cannot be read now"
    return Problem(503, "store-unavailable", detail, [("retry-after", "1")])


def without_response(run: RunRecord, *, full: bool) -> Problem:
    """Return what is told of a run from which no response will come; `full`: to an operator."""
    error = run_fields(run, full=full)["error"] or "it has no response"
    status = 409 if run.status in ("cancelled", "completed") else 500
    return Problem(status, f"run-{run.status}", f"the run is {run.status}: {error}")


# Errors whose own words are for the client.
_KNOWN: Final = (
    (RunEnded, 409, "run-ended"),
    (SignalRefused, 422, "signal-refused"),
    (PayloadTooLarge, 413, "body-too-large"),
    (NotSerializable, 422, "not-json"),
    (ExpiredLink, 410, "link-expired"),
    (BadLink, 404, "bad-link"),
)


def overloaded(reason: str) -> Problem:
    """No room for a new run."""
    return Problem(503, "overloaded", reason, [("retry-after", "1")])
