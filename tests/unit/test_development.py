"""The middleware's development mode: requests that should be effects are told of."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable, effect, step
from durable_endpoints.detector import UnannotatedEffect, uninstall


@asynccontextmanager
async def sink() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()  # here, not in a loop that has ended

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(("kind", "told"), [(step, True), (effect, False)])
def test_a_post_from_a_plain_step_is_told_of_and_one_from_an_effect_is_not(
    kind: object, told: bool
) -> None:
    async def main() -> None:
        async with sink() as url:

            @kind  # type: ignore[operator, untyped-decorator]
            async def post() -> int:
                async with httpx.AsyncClient() as client:
                    return (await client.post(url)).status_code

            @durable
            async def endpoint(request: object) -> PlainTextResponse:
                return PlainTextResponse(str(await post()))

            app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
            middleware = DurableMiddleware(app, store="memory:", development=True)
            transport = httpx.ASGITransport(app=middleware)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.post("/")).text == "200"
            await middleware.engine.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            asyncio.run(main())
        finally:
            uninstall()
    assert told is any(issubclass(w.category, UnannotatedEffect) for w in caught)


def test_access_logs_hold_no_approval_links() -> None:
    import logging

    from durable_endpoints.asgi.tail import hide_links

    path = "/_durable/approvals/MDFhMWZkMjM0NTY3ODkw.sig?x=1"
    record = logging.LogRecord("uvicorn.access", 20, "", 0, "%s %s", ("1.2.3.4:5", path), None)
    assert hide_links(record)
    assert record.getMessage() == "1.2.3.4:5 /_durable/approvals/MDFhMWZk…?x=1"
