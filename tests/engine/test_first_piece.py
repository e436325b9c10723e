"""A reader's first piece leaves with the first commit, however fast the handler goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.stores.memory import MemoryStore

PIECES = 2_000
made: list[int] = []


async def pieces() -> AsyncIterator[str]:
    """Never wait: nobody else has a turn unless it is given one."""
    for number in range(PIECES):
        made.append(number)
        yield f"data: {number}\n\n"


@durable
async def burst(_: Request) -> Response:
    return StreamingResponse(pieces(), media_type="text/event-stream")


async def ask() -> tuple[int, bytes]:
    """Return how many pieces there were when the first came out, and the whole body."""
    app = DurableMiddleware(Starlette(routes=[Route("/", burst)]), store=MemoryStore())
    sent: list[tuple[int, bytes]] = []

    async def receive() -> Any:
        if not made:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            sent.append((len(made), message["body"]))

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    await app.engine.close()
    return sent[0][0], b"".join(body for _, body in sent)


def test_the_first_piece_does_not_wait_for_a_turn_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However slow this machine is for the moment.
    monkeypatch.setattr("durable_endpoints.engine.pace.FIRST_COMMIT_S_MAX", 20.0)
    made.clear()
    first, body = asyncio.run(ask())
    assert first < 5
    assert body.count(b"data: ") == PIECES
