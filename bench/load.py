"""The client: keep-alive connections that ask again the moment they are answered.

One process, one thread, no task or future per request, so that what is measured is the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

_STALL_S = 60.0  # a contender that takes longer than this for one answer has hung

Check = Callable[[int, bytes], None]  # of status and body; raises BadAnswer


class BadAnswer(Exception):
    """A contender answered something else than the work's result; its figures are worth nothing."""


@dataclass
class Samples:
    """What one phase measured. Times in seconds."""

    seconds: float = 0.0
    total: list[float] = field(default_factory=list)  # request sent -> last byte of the answer
    first: list[float] = field(default_factory=list)  # request sent -> first byte of the body
    run_ids: list[str] = field(default_factory=list)  # Durable-Run-Id, where there was one


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a POST request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Lane(asyncio.Protocol):
    """One connection with one request under way."""

    transport: asyncio.Transport

    def __init__(self, phase: _Phase) -> None:
        self._phase = phase
        self._parser = httptools.HttpResponseParser(self)
        self.body: list[bytes] = []
        self.run_id = ""
        self.sent = self.began = 0.0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are not subclasses
        self.ask()

    def leave(self) -> None:
        self.closed = True
        self.transport.close()

    def ask(self) -> None:
        self.body.clear()
        self.run_id = ""
        self.began = 0.0
        self.sent = time.perf_counter()
        self.transport.write(self._phase.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._phase.fail(BadAnswer(f"not HTTP: {error}: {data[:200]!r}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name == b"durable-run-id":
            self.run_id = value.decode()

    def on_body(self, chunk: bytes) -> None:
        if not self.body:
            self.began = time.perf_counter()
        self.body.append(chunk)

    def on_message_complete(self) -> None:
        self._phase.answered(self, time.perf_counter(), self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self._phase.fail(BadAnswer(f"the server closed the connection early: {exc}"))


class _Phase:
    """One request, sent again and again by a number of lanes until the time is over."""

    def __init__(self, request: bytes, check: Check, seconds: float, at_least: int) -> None:
        self.request = request
        self.samples = Samples()
        self._check = check
        self._deadline = time.perf_counter() + seconds
        self._at_least = at_least
        self._open = 0
        self._lanes: list[_Lane] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, ports: Sequence[int], lanes: int) -> Samples:
        self._open = lanes
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        for number in range(lanes):
            port = ports[number % len(ports)]
            _, lane = await loop.create_connection(lambda: _Lane(self), "127.0.0.1", port)
            self._lanes.append(lane)
        try:
            async with asyncio.timeout(_STALL_S + self._deadline - began):
                await self._done
        except TimeoutError:
            answers = len(self.samples.total)
            raise BadAnswer(f"no more answers after {answers}; see the server's log") from None
        finally:
            for lane in self._lanes:
                lane.leave()
        self.samples.seconds = time.perf_counter() - began
        return self.samples

    def answered(self, lane: _Lane, now: float, status: int) -> None:
        samples = self.samples
        samples.total.append(now - lane.sent)
        samples.first.append(lane.began - lane.sent)
        if lane.run_id:
            samples.run_ids.append(lane.run_id)
        try:
            self._check(status, b"".join(lane.body))
        except BadAnswer as error:
            self.fail(error)
            return
        coming = self._open - 1  # what the other lanes have asked for counts, too
        if now < self._deadline or len(samples.total) + coming < self._at_least:
            lane.ask()
            return
        lane.leave()
        self._open -= 1
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def measure(
    port: int | Sequence[int], request: bytes, check: Check, *, lanes: int, seconds: float,
    at_least: int = 1,
) -> Samples:  # fmt: skip
    """Ask for `seconds` with `lanes` connections and return what was measured.

    Several ports get the connections in turn. Goes on until there are `at_least` answers in all.
    Every answer goes through `check`, after its time was taken.
    Raises: BadAnswer, also when a connection is lost.
    """

    ports = [port] if isinstance(port, int) else list(port)

    async def run() -> Samples:
        return await _Phase(request, check, seconds, at_least).run(ports, lanes)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
