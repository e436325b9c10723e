"""A small reverse proxy: each request goes to the next node that is well.

Nothing in it is special. Any load balancer will do that passes streams on as they come and looks
at `/_durable/health`; no request has to come back to the node that it was at before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

HEALTH_S = 0.5
_DROPPED = {"connection", "transfer-encoding", "keep-alive", "host"}


class Proxy:
    """Leads requests to `nodes`, addresses like http://127.0.0.1:8001."""

    def __init__(self, nodes: list[str]) -> None:
        self.nodes = nodes
        self.well: set[str] = set()
        self._next = 0
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=2), limits=httpx.Limits(max_connections=None)
        )

    async def watch(self) -> None:
        """Ask every node how it is, for ever."""
        while True:
            for node in self.nodes:
                with suppress(httpx.HTTPError):
                    answer = await self._http.get(f"{node}/_durable/health", timeout=1)
                    if answer.status_code == 200:
                        self.well.add(node)
                        continue
                self.well.discard(node)
            await asyncio.sleep(HEALTH_S)

    async def __call__(self, request: Request) -> Response:
        """Lead one request."""
        body = await request.body()
        headers = [(k, v) for k, v in request.headers.items() if k not in _DROPPED]
        client = request.client.host if request.client else "unknown"
        headers.append(("x-forwarded-for", client))
        for _ in self.nodes:
            self._next += 1
            node = self.nodes[self._next % len(self.nodes)]
            if node not in self.well:
                continue
            url = httpx.URL(node + request.url.path, query=request.url.query.encode())
            asked = self._http.build_request(request.method, url, headers=headers, content=body)
            try:
                answer = await self._http.send(asked, stream=True)
            except httpx.ConnectError:
                self.well.discard(node)  # nobody heard it: the next node may
                continue
            except httpx.HTTPError:
                return _come_back()  # it may have been heard: whoever asked decides
            return StreamingResponse(_passed(answer), answer.status_code, dict(answer.headers))
        return _come_back()


async def _passed(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Pass a body on. If the node dies, this raises: the connection is cut, as the node's was."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _come_back() -> Response:
    return JSONResponse({"detail": "no node is well"}, 503, {"retry-after": "1"})
