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
from durable_endpoints.errors import StreamAborted
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


class HeldEnd(MemoryStore):
    """Its disk does not come back when a run's end comes."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        if any(frame.status == "completed" for frame in batch):
            self.waiting.set()
            await asyncio.Event().wait()
        return await super().append(batch)


class Reader:
    """The client of one stream, and the server it asks."""

    def __init__(self, store: MemoryStore, query: bytes = b"") -> None:
        app = Starlette(routes=[Route("/", stream)])
        app.state.rest = self.rest = asyncio.Event()
        self.app = DurableMiddleware(app, store=store)
        self.blocks: list[bytes] = []
        self.whole = asyncio.Event()
        self._asked = False
        self._query = query

    async def ask(self) -> None:
        """Ask for the stream; returns, or raises, with the server."""
        headers = [(b"durable-events", b"1")]
        scope = {
            "type": "http", "method": "GET", "path": "/", "headers": headers,
            "query_string": self._query,
        }  # fmt: skip
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.blocks.append(message.get("body", b""))
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.whole.set()


def last_word(query: bytes) -> bytes:
    """Return the last block of a stream."""

    async def main() -> bytes:
        reader = Reader(SlowEnd(), query)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.ask())
            await reader.whole.wait()
            reader.rest.set()
        await reader.app.engine.close()
        return b"".join(reader.blocks).split(b"\n\n")[-2]

    return asyncio.run(main())


def test_a_run_that_has_returned_is_done_when_its_end_is_durable() -> None:
    assert b'event: durable.done\ndata: {"status":"completed","error":null}' in last_word(b"")


def test_work_behind_a_response_holds_no_reader() -> None:
    assert b'event: durable.done\ndata: {"status":"running","error":null}' in last_word(b"rest")


def test_i5_a_stream_whose_run_is_lost_at_its_last_commit_is_cut() -> None:
    """Its end is told where it is known: the reader is to come back."""

    async def main() -> bytes:
        store = HeldEnd()
        reader = Reader(store)
        async with asyncio.timeout(PATIENCE_S):
            asking = asyncio.create_task(reader.ask())
            await store.waiting.wait()
            (run,) = reader.app.engine.runs.values()
            while b"data: 1" not in b"".join(reader.blocks):
                await asyncio.sleep(0.001)
            run.fence("another node has it")
            await asyncio.wait([asking])
        assert isinstance(asking.exception(), StreamAborted)
        assert not reader.whole.is_set()
        return b"".join(reader.blocks)

    assert b"durable.done" not in asyncio.run(main())
