"""Sends a run's durable events to one reader: the first connection, a second tab, a reconnect.

All of them read the same log from a cursor; a slow reader costs the run nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from durable_endpoints.asgi.cursor import is_rewound
from durable_endpoints.asgi.sse import HEARTBEAT, control, with_id, wrap
from durable_endpoints.engine.reader import Reader
from durable_endpoints.engine.recent import Event
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Fenced, RunDeleted, StoreAway, StreamAborted
from durable_endpoints.limits import HEARTBEAT_S, SEND_STALL_S, WRITE_BYTES_MAX
from durable_endpoints.records import Kind

if TYPE_CHECKING:
    from starlette.types import Send

    from durable_endpoints.stores.protocol import Store

_SSE_HEADERS: Final = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
# Not for the wire: a stream's length changes with the ids, connection headers are the server's.
# Looking a member up costs more than everything else that is done with it here.
_HEAD, _CHUNK = Kind.HEAD, Kind.CHUNK
_LINK: Final = re.compile(r"(/approvals/.{8})[^/\s?]+")
_LINGER_S: Final = 0.05
_DROPPED: Final = frozenset({b"content-length", b"connection", b"keep-alive"})


def own_headers(run_id: str, prefix: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that say which run a response is, and where it goes on."""
    link = f'<{prefix}/runs/{run_id}/stream>; rel="durable-stream"'
    return (b"durable-run-id", run_id.encode()), (b"link", link.encode())


def quiet_aborts(record: logging.LogRecord) -> bool:
    """Keep a server's log free of tracebacks for connections that are cut on purpose."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamAborted))


def hide_links(record: logging.LogRecord) -> bool:
    """Keep approval links out of a server's access log: who has one can decide."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            _LINK.sub(r"\1…", value) if isinstance(value, str) else value for value in record.args
        )
    return True


class Tail:
    """One reader's connection."""

    def __init__(
        self, store: Store, run: LiveRun, send: Send, *, prefix: str, offset: int = 0,
        wrapped: bool = False, rewinds: bool = False,
        secrets: tuple[tuple[bytes, bytes], ...] = (), raw: bool = False,
    ) -> None:  # fmt: skip
        self.run = run
        self.began = False
        self.ended = False
        self._send = send
        self._prefix = prefix
        self._reader = Reader(store, run, offset)
        self._sent = offset - 1
        self._wrapped = wrapped  # a body that is not SSE, asked for as SSE
        self._raw = raw  # the response as it was, without ids
        self._rewinds = rewinds
        self._secrets = secrets
        self._sse = wrapped
        self._run_id = run.id.encode()
        self._loop = run.log.loop
        self._watch: asyncio.TimerHandle | None = None
        self._writes = 0
        self._writing = self._stalled = False
        self._told = False  # whether the reader was told that the run waits

    async def follow(self) -> None:
        """Send everything up to the end of the response, as it becomes durable.

        Raises: StreamAborted if the reader is to come back; OSError if it is gone.
        """
        run, meters, task = self.run, self.run.log.meters, asyncio.current_task()
        run.readers += 1
        meters.readers += 1
        self._watch = self._loop.call_later(SEND_STALL_S, self._check_stall, task, 0)
        try:
            await self._follow()
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            if task is not None:
                task.uncancel()
            raise StreamAborted(f"a reader of run {run.id} took nothing any more") from None
        finally:
            self._watch.cancel()
            run.readers -= 1
            meters.readers -= 1

    async def _follow(self) -> None:
        reader, run = self._reader, self.run
        try:
            if self._wrapped:  # surely an event stream: show at once that somebody is here
                await self._open(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
            await self._head()
            while True:
                events = await reader.read(HEARTBEAT_S if self._sse else None)
                if events is None:
                    await self._idle()
                elif events:
                    await self._events(events)
                else:
                    break
            if not self.ended and self._sse and self._rewinds:
                await self._outcome()
        except (Fenced, StoreAway) as reason:
            raise StreamAborted(f"run {run.id} goes on elsewhere: {reason}") from None
        except RunDeleted:
            raise StreamAborted(f"run {run.id} was deleted") from None
        await self._end()

    async def _head(self) -> None:
        """Wait for the run's response head, and begin by it."""
        run = self.run
        while run.head is None or run.durable_offset == 0:
            if run.gone is not None:
                raise Fenced(run.gone)
            if run.ended:
                if self.began:
                    return
                raise StreamAborted(f"run {run.id} ended without a response")
            if not await self._reader.moved(HEARTBEAT_S if self.began else None) or (
                self.began and (run.record.status == "suspended") != self._told
            ):
                await self._idle()
        head: dict[str, Any] = orjson.loads(run.head)
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in head["headers"]]
        kind = next((v for k, v in headers if k == b"content-type"), b"")
        encoded = any(k == b"content-encoding" and v != b"identity" for k, v in headers)
        own_sse = kind.startswith(b"text/event-stream") and not self._raw and not encoded
        self._wrapped = self._wrapped and not own_sse
        if not self.began:
            self._sse = own_sse
            await self._open(head["status"], headers)

    async def _idle(self) -> None:
        """Show that somebody is here; say so once if the run now waits."""
        record = self.run.record
        suspended = record.status == "suspended"
        if suspended != self._told:
            self._told = suspended
            if self._rewinds and self._sse:
                waiting = orjson.loads(record.waiting or "[]")
                word = "durable.suspended" if suspended else "durable.resumed"
                await self._write(control(word, {"waiting": waiting}))
        elif self._sse:
            await self._write(HEARTBEAT)

    async def _open(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._sse:
            headers = [(k, v) for k, v in headers if k not in _DROPPED]
            given = {name for name, _ in headers}
            headers += [(k, v) for k, v in _SSE_HEADERS if k not in given]
        headers += self._secrets
        headers += own_headers(self.run.id, self._prefix)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.began = True
        if self._sse and self._rewinds:
            await self._write(control("durable.run", {"run_id": self.run.id}))

    async def _events(self, events: list[Event]) -> None:
        run, sse = self.run, self._sse
        plain = not run.rewinds
        last = None
        if not sse and self._reader.at_end:
            last = events[-1]
        parts: list[bytes] = []
        size = 0
        for event in events:
            kind = event.kind
            if kind == _HEAD or (not plain and self._skip(event)):
                continue
            if sse and kind == _CHUNK and not self._wrapped:
                data = with_id(event.payload, self._run_id, event.offset, event.crc)
            elif sse:
                data = self._block(event)
            elif kind == _CHUNK:
                data = event.payload
                self.ended = event is last and run.response_ended
            else:
                continue
            # Events that are durable together leave together: a reader that is behind catches up.
            parts.append(data)
            size += len(data)
            self._sent = event.offset
            if size >= WRITE_BYTES_MAX and not self.ended:
                await self._write(b"".join(parts))
                parts.clear()
                size = 0
        if parts:
            await self._write(b"".join(parts), more=not self.ended)

    def _skip(self, event: Event) -> bool:
        """Say whether this reader does not see an event: taken back, or a rewind not asked for.

        Raises: StreamAborted if it has seen what is taken back now.
        """
        if self._rewinds and self._sse:
            return False
        if event.kind == Kind.REWIND:
            to = int(orjson.loads(event.payload)["to"])
            if self._sent > to:
                raise StreamAborted("events that this reader has seen were taken back")
            return True
        return is_rewound(self.run, event.offset)

    def _block(self, event: Event) -> bytes:
        place = f"{self.run.id}:{event.offset}-{event.crc:08x}"
        if event.kind == Kind.REWIND:
            return control("durable.rewind", orjson.loads(event.payload), place)
        block = event.payload if event.kind == Kind.EMIT else wrap(event.payload)
        return with_id(block, self._run_id, event.offset, event.crc)

    async def _outcome(self) -> None:
        """Wait for the end of a run whose handler is returning or has returned.

        Raises: Fenced, StoreAway if its end is not told here.
        """
        run = self.run
        if not run.ended:  # the usual handler returns right after its last byte
            await self._reader.moved(_LINGER_S)
        while run.over and not run.ended:  # its last commit is on its way
            if run.gone is not None:
                raise Fenced(run.gone)
            if not await self._reader.moved(HEARTBEAT_S):
                await self._write(HEARTBEAT)

    async def _end(self) -> None:
        run = self.run
        if self.ended:
            return
        if self._sse and self._rewinds:
            error = run.record.error.partition(":")[0] if run.record.error else None
            done = {"status": run.record.status, "error": error}
            await self._write(control("durable.done", done))
        elif not run.response_ended and run.record.status != "cancelled":
            raise StreamAborted(
                f"run {run.id} {run.record.status} before its response was complete"
            )
        await self._write(b"", more=False)
        self.ended = True

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        self._writing = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._writing = False
        self._writes += 1

    def _check_stall(self, task: asyncio.Task[Any] | None, writes: int) -> None:
        """Let a reader go that has taken nothing for a while; it can come back."""
        if self._writing and writes == self._writes and task is not None:
            self._stalled = True
            task.cancel()
            return
        self._watch = self._loop.call_later(SEND_STALL_S, self._check_stall, task, self._writes)
