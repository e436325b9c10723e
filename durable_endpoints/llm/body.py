"""A response's body, as the client library reads it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import AsyncGeneratorType
from typing import cast

from durable_endpoints.llm.library import ByteStream


class Body(ByteStream):
    """A response's body. Whoever iterates over it goes on where the last one stopped."""

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]],
        count: Callable[[bytes | None], None] | None = None,
    ) -> None:  # fmt: skip
        self._pieces = pieces
        self._close = close
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what is left of the body."""
        while True:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                self._end()
                return
            if self._count is not None:
                self._count(piece)
            yield piece

    def _end(self) -> None:
        if self._count is not None:
            self._count(None)
            self._count = None

    async def aclose(self) -> None:
        """Leave the body, and close the connection that it comes from."""
        self._end()
        if not cast("AsyncGeneratorType[bytes, None]", self._pieces).ag_running:
            await self._pieces.aclose()
        await self._close()


async def once(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body that is there as a whole."""
    if body:
        yield body
