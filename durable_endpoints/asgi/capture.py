"""The inner app's response as events: head, body pieces or SSE blocks, end.

During a replay what the app sends again is compared with the journal instead of appended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import anyio
import orjson

from durable_endpoints.asgi.sse import Splitter
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Diverged, DurableError, Fenced
from durable_endpoints.limits import EVENT_BYTES_MAX
from durable_endpoints.records import Kind
from durable_endpoints.redact import is_secret

_FILE_CHUNK_BYTES: Final = 64 * 1024
_CHUNK: Final = Kind.CHUNK


class ResponseCapture:
    """Takes one response into a run's journal."""

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self._life = run.life
        self.began = False
        self.ended = False
        self._hurried = False  # its first piece is on its way
        self.secrets: tuple[tuple[bytes, bytes], ...] = ()
        self._splitter: Splitter | None = None
        self._message: MutableMapping[str, Any] = {}
        self._completed: asyncio.Future[None] | None = None
        self._held: list[bytes] | None = None
        # Replay only needs the recorded end when the body had come to one.
        self._recorded_end = run.replay is not None and run.replay.journal.body_ended

    def takes_now(self, message: MutableMapping[str, Any]) -> bool:
        """Take a piece of an event stream, unless there is something to wait for.

        `take` without its coroutines, which a piece a token would pay for.

        Raises: Fenced; PayloadTooLarge.
        """
        run, splitter = self.run, self._splitter
        if splitter is None or run.replay is not None or run.log.full or self._life.over:
            return False
        if not self._hurried:  # the first piece is told of, see `take`
            return False
        if not message.get("more_body") or run.pace.is_due(run.log.monotonic_s()) or self.ended:
            return False
        for block in splitter.feed(message.get("body", b"")):
            run.append_event(_CHUNK, block)
        return True

    async def take(self, message: MutableMapping[str, Any]) -> None:
        """Take one message of the inner app.

        Raises: Diverged, after the run was parked; Fenced.
        """
        kind = message["type"]
        run = self.run
        if self._life.over:
            raise Fenced("the run goes on without this app")
        if run.log.full and kind != "http.response.start":
            await run.log.room()
        if kind == "http.response.start":  # apps rely on it that this does not wait
            self.start(message)
        elif kind == "http.response.body":
            more = message.get("more_body", False)
            if more and run.pace.is_due(run.log.monotonic_s()):
                await run.pace.give_way(run)
            await self._body(message.get("body", b""), more=more)
            if more and not self._hurried:
                self._hurried = True
                run.pace.hurry(run)
        elif kind == "http.response.pathsend":
            await self._file(message["path"])

    def start(self, message: MutableMapping[str, Any]) -> None:
        """Take the response head."""
        run = self.run
        if self.began:
            raise DurableError("the app began its response twice")
        self.began = True
        headers, secrets, content_type, encoded = [], [], "", False
        for name, value in message.get("headers", ()):
            key, text = bytes(name).lower(), bytes(value).decode("latin-1")
            if is_secret(key.decode("latin-1")):
                secrets.append((key, bytes(value)))  # for the first reader only, never stored
            else:
                headers.append((key.decode("latin-1"), text))
            if key == b"content-type":
                content_type = text
            elif key == b"content-encoding" and text != "identity":
                encoded = True
        self.secrets = tuple(secrets)
        self._message = message
        if encoded:
            self._held = []
        elif content_type.startswith("text/event-stream"):
            self._splitter = Splitter()
        status = message["status"]
        replay = run.replay
        recorded = False
        if replay is not None:
            recorded = self._checked(replay.journal.match_head, status, content_type)
            replay.moved()
        if not recorded:
            payload = orjson.dumps({"status": status, "headers": headers})
            run.append_event(Kind.HEAD, payload)
        early, run.early = run.early, None
        for ident, block in early or ():
            run.emit(ident, block)

    async def _body(self, data: bytes, *, more: bool) -> None:
        if self.ended:
            return
        if self._held is not None:  # compressed: its bytes cannot be made twice
            self._held.append(data)
            if not more:
                await self._release(b"".join(self._held))
        elif self._splitter is not None:
            for block in self._splitter.feed(data) if data else ():
                await self._piece(block)
            if not more and (rest := self._splitter.rest()):
                await self._piece(rest)
        elif data:
            for at in range(0, len(data), EVENT_BYTES_MAX):
                await self._piece(bytes(data[at : at + EVENT_BYTES_MAX]))
        if not more:
            await self._end()

    async def _release(self, data: bytes) -> None:
        replay = self.run.replay
        if replay is not None and self._recorded_end:
            replay.journal.skip_body()
            replay.moved()
            return
        for at in range(0, len(data), EVENT_BYTES_MAX):
            self.run.append_event(Kind.CHUNK, data[at : at + EVENT_BYTES_MAX])

    async def _piece(self, data: bytes) -> None:
        run = self.run
        replay = run.replay
        if replay is not None:
            data = self._checked(replay.journal.match_body, data)
            replay.moved()
            if not data:
                return
            await replay.exhausted()
        run.append_event(_CHUNK, data)

    def whole(self) -> tuple[MutableMapping[str, Any], bytes] | None:
        """Return head and body of a complete response that is still in memory; None for SSE."""
        run = self.run
        if not self.ended or self._splitter is not None or run.rewinds:
            return None
        events = run.recent_from(0)
        if not events or len(events) != run.offset:
            return None
        body = [event.payload for event in events if event.kind == Kind.CHUNK]
        return self._message, body[0] if len(body) == 1 else b"".join(body)

    async def complete(self) -> None:
        """Wait until the app has sent its whole response."""
        if not self.ended:
            if self._completed is None:
                self._completed = self.run.log.loop.create_future()
            await asyncio.shield(self._completed)

    async def _end(self) -> None:
        self.ended = True
        if self._completed is not None:
            self._completed.set_result(None)
        run = self.run
        if self._recorded_end:
            return
        if run.replay is not None:
            await run.replay.exhausted()
        run.body_end_seq = run.append(Kind.BODY_END)

    async def _file(self, path: str) -> None:
        async with await anyio.open_file(path, "rb") as file:
            while data := await file.read(_FILE_CHUNK_BYTES):
                await self._body(data, more=True)
        await self._body(b"", more=False)

    def _checked(self, match: Callable[..., Any], *args: Any) -> Any:
        try:
            return match(*args)
        except Diverged as error:
            raise self.run.diverge(error.difference) from None
