"""The word that a stream is done says how its run ended, however slow the disk is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.records import Frame
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import PATIENCE_S

# Longer than a stream waits for a handler that goes on behind its response.
SLOW_S = 0.6


class SlowEnd(MemoryStore):
    """Its disk is slow when a run's end comes."""

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        if any(frame.status == "completed" for frame in batch):
            await asyncio.sleep(SLOW_S)
        return await super().append(batch)


async def pieces() -> AsyncIterator[str]:
    yield "data: 1\n\n"


@durable
async def stream(request: Request) -> Response:
    async def rest() -> None:
        await request.app.state.rest.wait()

    work = BackgroundTask(rest) if "rest" in request.query_params else None
    return StreamingResponse(pieces(), media_type="text/event-stream", background=work)


def last_word(query: bytes) -> bytes:
    """Return the last block of a stream."""

    async def main() -> bytes:
        app = Starlette(routes=[Route("/", stream)])
        app.state.rest = asyncio.Event()
        wrapped = DurableMiddleware(app, store=SlowEnd())
        blocks: list[bytes] = []
        asked = False
        whole = asyncio.Event()

        async def receive() -> Any:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            blocks.append(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                whole.set()

        headers = [(b"durable-events", b"1")]
        scope = {
            "type": "http", "method": "GET", "path": "/", "headers": headers,
            "query_string": query,
        }  # fmt: skip
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(wrapped(scope, receive, send))
            await whole.wait()
            app.state.rest.set()
        await wrapped.engine.close()
        return b"".join(blocks).split(b"\n\n")[-2]

    return asyncio.run(main())


def test_a_run_that_has_returned_is_done_when_its_end_is_durable() -> None:
    assert b'event: durable.done\ndata: {"status":"completed","error":null}' in last_word(b"")


def test_work_behind_a_response_holds_no_reader() -> None:
    assert b'event: durable.done\ndata: {"status":"running","error":null}' in last_word(b"rest")
