"""One answer that is still coming: read ahead a little, given on in pieces as large as they come.

A task of its own reads, so that all that has arrived is one piece when the consumer is ready for
it (one journal entry, not one a token), and a token that arrives alone goes on at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final, cast

import httpx

from durable_endpoints.engine.run import LiveRun

# What is read before the consumer has taken it.
READ_AHEAD_BYTES_MAX: Final = 64 * 1024
# An event that has to be whole is waited for up to this: a response's last one repeats all of it.
BLOCK_BYTES_MAX: Final = 4 * 1024 * 1024
# How long a connection may take to come to its end behind the last event, to be used again.
_FINISH_S: Final = 1.0
_TAIL_BYTES: Final = 1024
_NAME_BYTES: Final = 64
# With these OpenAI's responses are over; a word or two may yet follow.
_LAST_NAMES: Final = frozenset(
    b"event: response." + name for name in (b"completed", b"failed", b"incomplete")
)
_BLOCK_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
# Behind these events nothing follows: OpenAI's chat completions, Anthropic's messages.
_TERMINAL: Final = re.compile(
    rb"(?:^|[\r\n])(?:data: ?\[DONE\]|event: ?message_stop(?:\r\n|\n|\r)data: ?\{[^\r\n]*\})"
    rb"(?:\r\n\r\n|\n\n|\r\r)$"
)


class Upstream:
    """A response that is being read for a run; closed when the run's task ends, at the latest.

    `begun` is what was read of it before, `pieces` the rest. With `whole_events` only complete
    SSE events are given on.
    """

    def __init__(
        self, run: LiveRun, response: httpx.Response, *, pieces: AsyncIterator[bytes] | None = None,
        begun: list[bytes] | None = None, whole_events: bool = False,
    ) -> None:  # fmt: skip
        self.response = response
        self._pieces = pieces or pieces_of(response)
        self._whole_events = whole_events
        self._limit = BLOCK_BYTES_MAX if whole_events else READ_AHEAD_BYTES_MAX
        self._parts = begun or []
        self._size = sum(map(len, self._parts))
        self._failure: Exception | None = None
        self._ended = False
        self._discarding = False
        self._wanted: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._read())
        # Nobody is to pay for an answer that nobody takes.
        self._driver = run.task or asyncio.current_task()
        if self._driver is not None:
            self._driver.add_done_callback(self._abandon)

    async def read(self) -> bytes | None:
        """Return what has arrived, waiting for the first of it; None at the end.

        Raises: what the connection raised, after everything that came before it was given on.
        """
        while True:
            data = self._take()
            if data:
                return data
            if self._ended:
                if self._failure is not None:
                    raise self._failure
                return None
            self._wanted = self._loop.create_future()
            await self._wanted

    def _take(self) -> bytes:
        if not self._parts:
            return b""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        rest = b""
        if self._whole_events and (self._failure is not None or not self._ended):
            end = max(_end_of_last(data, mark) for mark in _BLOCK_ENDS)
            if end or len(data) < BLOCK_BYTES_MAX:
                data, rest = data[:end], data[end:]
        self._parts = [rest] if rest else []
        self._size = len(rest)
        if data:
            _wake(self._room)
        return data

    async def is_over(self, patience_s: float = 0.0) -> bool:
        """Say whether nothing follows what was given on; wait so long for the end, at most."""
        if patience_s and not self._ended and not self._parts:
            self._wanted = self._loop.create_future()
            await asyncio.wait([self._wanted], timeout=patience_s)
        return self._ended and self._failure is None and not self._parts

    async def close(self) -> None:
        """Close the connection now, unless it is left to its end."""
        if not self._discarding:
            self._task.cancel()
            await asyncio.wait([self._task])

    def finish(self) -> None:
        """Let the connection come to its end by itself: nothing of it is wanted any more."""
        self._discarding = True
        _wake(self._room)
        if not self._task.done():
            timer = self._loop.call_later(_FINISH_S, self._task.cancel)
            self._task.add_done_callback(lambda _: timer.cancel())

    async def _read(self) -> None:
        try:
            async for chunk in self._pieces:
                if self._discarding or not chunk:
                    continue
                self._parts.append(chunk)
                self._size += len(chunk)
                _wake(self._wanted)
                if self._size >= self._limit:
                    self._room = self._loop.create_future()
                    await self._room
        except Exception as failure:  # noqa: BLE001 - the consumer gets it
            self._failure = failure
        finally:
            try:
                await self.response.aclose()
            except Exception as failure:  # noqa: BLE001 - the first one tells more
                self._failure = self._failure or failure
            self._ended = True
            _wake(self._wanted)
            if self._driver is not None:
                self._driver.remove_done_callback(self._abandon)

    def _abandon(self, _: asyncio.Future[object]) -> None:
        self._task.cancel()


def pieces_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the raw body of a response, as it comes."""
    return aiter(cast("httpx.AsyncByteStream", response.stream))


def _end_of_last(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return 0 if at < 0 else at + len(mark)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Ending:
    """Watches an event stream for the event behind which nothing comes."""

    def __init__(self) -> None:
        self._tail = b""
        self._name = b""

    def reached(self, data: bytes) -> bool:
        """Say whether the stream is complete with this piece."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return _TERMINAL.search(self._tail) is not None

    def is_near(self, data: bytes) -> bool:
        """Say whether this piece has the event behind which the end of the stream comes soon."""
        at = data.rfind(b"event: ")
        if at >= 0:
            self._name = data[at : at + _NAME_BYTES].partition(b"\n")[0].strip()
        return self._name in _LAST_NAMES and data.endswith(_BLOCK_ENDS)
