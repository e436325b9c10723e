"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import orjson

from durable_endpoints.errors import Corrupt, RunDeleted, StoreError

if TYPE_CHECKING:
    from starlette.types import Send

_TYPES: Final = "https://durable-endpoints.dev/problems/"


class Problem(Exception):
    """A request that gets a problem as its answer."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(status, kind, detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers

    def body(self) -> bytes:
        """Return the problem's JSON."""
        title = self.kind.replace("-", " ").capitalize()
        fields = {"type": _TYPES + self.kind, "title": title, "status": self.status}
        return orjson.dumps({**fields, "detail": self.detail})

    async def answer(self, send: Send) -> None:
        """Send it."""
        body = self.body()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *((name.encode(), value.encode()) for name, value in self.headers),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def not_found() -> Problem:
    """Unknown and foreign runs get the same answer (I18)."""
    return Problem(404, "run-not-found", "there is no such run")


def as_problem(error: RunDeleted | StoreError) -> Problem:
    """Return what a reader is told of an error below."""
    if isinstance(error, RunDeleted):
        return Problem(410, "run-deleted", "the run was deleted")
    if isinstance(error, Corrupt):
        return Problem(500, "run-damaged", "the run's journal is damaged")
    detail = "the journal cannot be read now"
    return Problem(503, "store-unavailable", detail, [("retry-after", "1")])


def overloaded(reason: str) -> Problem:
    """No room for a new run."""
    return Problem(503, "overloaded", reason, [("retry-after", "1")])
