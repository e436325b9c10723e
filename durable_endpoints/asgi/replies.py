"""Answers that are sent in one piece: a response that is complete, and the word of acceptance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_endpoints.asgi.capture import ResponseCapture
from durable_endpoints.asgi.tail import own_headers
from durable_endpoints.engine.run import LiveRun

if TYPE_CHECKING:
    from starlette.types import Send


async def send_whole(send: Send, run: LiveRun, capture: ResponseCapture, prefix: str) -> bool:
    """Send a response that is complete and in memory, once all of the run is durable.

    False if it is not so.
    """
    if run.fenced is not None or not capture.ended:
        return False
    await run.durable(run.terminal_seq)
    whole = capture.whole()
    if whole is None:
        return False
    head, body = whole
    headers = [*head.get("headers", ()), *own_headers(run.id, prefix)]
    await send({**head, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return True


async def send_accepted(send: Send, run: LiveRun, prefix: str) -> None:
    """Answer at once that the run was accepted (RFC 7240, respond-async)."""
    await run.durable(0)
    headers = [
        (b"location", f"{prefix}/runs/{run.id}".encode()),
        (b"preference-applied", b"respond-async"),
        (b"durable-run-id", run.id.encode()),
        (b"vary", b"Prefer"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
