"""A reader that keeps its transcript, leaves when it likes, and always comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httpx

from durable_endpoints.testing.sse import Decoder
from durable_endpoints.testing.transcript import Transcript

_RETRY_S: Final = 0.1
# While a server restarts or drains, a proxy or it itself may say one of these.
_COME_BACK: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Request:
    """A request that begins a run."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


async def pause() -> None:
    """Wait before the next attempt to connect."""
    await asyncio.sleep(_RETRY_S)


class Lost(Exception):
    """The connection broke, or the reader dropped it: it is to come back."""


class Reader:
    """Follows one run's stream to its end over any number of connections.

    `opening` begins the run (give it an `Idempotency-Key`, so that it can be sent again);
    without it `transcript.run_id` must be set. `cut` is the chance, per event, that the reader
    drops its connection by itself. `resend` resumes by sending the opening request again, as
    stock clients do; `bare` by the bare offset. `wait` is awaited before each further attempt. A
    reader gives up only at a violation.
    """

    def __init__(
        self, http: httpx.AsyncClient, transcript: Transcript, *, chance: random.Random,
        opening: Request | None = None, prefix: str = "/_durable", cut: float = 0.0,
        resend: bool = False, bare: bool = False, wait: Callable[[], Awaitable[None]] = pause,
    ) -> None:  # fmt: skip
        self.transcript = transcript
        self.named = asyncio.Event()  # set once the run's id is known
        self._http = http
        self._opening = opening
        self._prefix = prefix
        self._chance = chance
        self._cut = cut
        self._resend = resend and opening is not None
        self._bare = bare
        self._wait = wait
        self.head: tuple[int, str] | None = None  # status and content type of the first answer

    async def follow(self) -> Transcript:
        """Read until the end of the response; returns the transcript."""
        transcript = self.transcript
        while not transcript.whole and not transcript.violations:
            try:
                await self._connect_once()
            except (Lost, httpx.TransportError):
                await self._wait()
        return transcript

    def _call(self) -> tuple[str, str, bytes, dict[str, str]]:
        transcript = self.transcript
        headers = {"accept-encoding": "identity"}
        if transcript.control:
            headers["durable-events"] = "1"
        if transcript.run_id is None or (self._resend and transcript.cursor is not None):
            opening = self._opening
            if opening is None:
                raise ValueError("a reader without an opening request needs a run id")
            headers |= opening.headers
            if transcript.cursor is not None:
                headers["last-event-id"] = transcript.cursor
            return opening.method, opening.path, opening.body, headers
        path = f"{self._prefix}/runs/{transcript.run_id}/stream"
        headers["accept"] = "text/event-stream"
        if transcript.cursor is not None:
            last = transcript.seen[-1].offset if transcript.seen else None
            if self._bare and last is not None:
                path += f"?after={last}"
            else:
                headers["last-event-id"] = transcript.cursor
        return "GET", path, b"", headers

    async def _connect_once(self) -> None:
        method, path, body, headers = self._call()
        transcript = self.transcript
        async with self._http.stream(method, path, content=body, headers=headers) as response:
            transcript.connections += 1
            run_id = response.headers.get("durable-run-id")
            if run_id is not None and transcript.run_id not in (None, run_id):
                transcript.blame("I7", f"was answered by run {run_id}")
                return
            if run_id is not None:
                transcript.run_id = run_id
                self.named.set()
            if response.status_code == 204:
                transcript.whole = True
            elif response.status_code in _COME_BACK:
                raise Lost
            elif response.status_code == 409 and await self._taken_back(response):
                transcript.begin_anew()
            elif run_id is not None and not path.startswith(self._prefix + "/"):
                await self._read(response)  # the handler's own answer, whatever its status
            elif response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")[:500]
                transcript.blame(_broken_by(response.status_code), f"{method} {path}: "
                                 f"{response.status_code} {text}")  # fmt: skip
            else:
                await self._read(response)

    async def _taken_back(self, response: httpx.Response) -> bool:
        problem = (await response.aread()).decode(errors="replace")
        return not self.transcript.control and "/rewound" in problem

    async def _read(self, response: httpx.Response) -> None:
        transcript = self.transcript
        kind = response.headers.get("content-type", "")
        if self.head is None:
            self.head = response.status_code, kind
        if not kind.startswith("text/event-stream"):
            raise Lost  # an answer of another kind: the run's own address has it as events
        decoder = Decoder()
        async with aclosing(cast("AsyncIterator[Any]", response.aiter_raw())) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for block in decoder.feed(chunk):
                    transcript.take(block)
                    if self._cut and self._chance.random() < self._cut and not transcript.whole:
                        raise Lost
        if decoder.retry_ms is not None and not transcript.whole:
            raise Lost  # the server is leaving and asks to come back
        if transcript.control:
            if not transcript.whole:
                transcript.blame("I5", "the body ended cleanly without durable.done")
        else:
            transcript.whole = True  # only a complete response ends without an error


def _broken_by(status: int) -> str:
    return {404: "I7", 409: "I5"}.get(status, f"HTTP {status}")
