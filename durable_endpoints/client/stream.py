"""Following one run's events over any number of connections."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import httpx

from durable_endpoints.client.answers import (
    HistoryDiverged,
    is_event_stream,
    json_object,
    refusal,
    run_id_of,
)
from durable_endpoints.client.sse import Message, SSEDecoder
from durable_endpoints.errors import RunCancelled, RunFailed

if TYPE_CHECKING:
    from durable_endpoints.client.http import Call, DurableClient

logger = logging.getLogger("durable_endpoints.client")

# Statuses of a run whose response is whole; "running": only background work is left.
_WHOLE: Final = frozenset({"completed", "running", "suspended"})
BYTES: Final = "durable.bytes"
_OWN_ID: Final = re.compile(r"(?P<run>[0-9a-f-]{32,36}):(?P<offset>\d{1,18})-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a run. `offset` is its place in the run's log, a cursor to resume after.

    Where the run's body is no event stream, an event is one chunk of it: `data` is its text, or,
    with `event` "durable.bytes", its bytes in base64. `chunk()` is the same for both.
    """

    data: str
    event: str
    id: str
    offset: int

    def chunk(self) -> bytes:
        """Return the bytes of a chunk."""
        return base64.b64decode(self.data) if self.event == BYTES else self.data.encode()

    def json(self) -> Any:
        """Return the data, parsed. Raises ValueError if it is no JSON."""
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Rewind:
    """All events with an offset above `to` are taken back; what follows replaces them."""

    to: int
    id: str
    offset: int


class RunStream:
    """The events of one run, from `DurableClient.stream` or `DurableClient.resume`.

    Iterate it for `Event` and `Rewind` items. `async with` connects at once, so that `run_id` is
    known before the first item, and lets go of the connection at the end; the run goes on.
    Iteration ends when the response is complete. It raises RunFailed or RunCancelled when the
    run ended otherwise; HistoryDiverged, RunNotFound or ResponseError when the server refuses;
    ConnectionLost when it stays silent. `status` is the run's status, None until it is known.
    `waiting` is what the run waits for while it is suspended (dicts of `kind`, `name`, `until`),
    as far as the iteration has come; None while it works.
    """

    def __init__(
        self, client: DurableClient, opening: Call | None, run_id: str | None, after: int | str
    ) -> None:
        self.run_id = run_id
        self.status: str | None = None
        self.waiting: list[dict[str, Any]] | None = None
        # What rewinds left. Its size is bounded by the server's limit for a run's journal.
        self.events: list[Event] = []
        self._client = client
        self._opening = opening
        self._cursor = after if isinstance(after, str) else None
        self._offset = after if isinstance(after, int) else _offset_in(after)
        self._error: object = None
        self._backoff = client.backoff()
        self._response: httpx.Response | None = None
        self._items = self._follow()

    @property
    def text(self) -> str:
        """The data of the surviving events of the default type, joined, built at each call."""
        chunks = (event.chunk() for event in self.events if event.event in {"message", BYTES})
        return b"".join(chunks).decode(errors="replace")

    async def cancel(self) -> str:
        """Cancel the run, see `DurableClient.cancel`; connects first if it has no id yet."""
        if self.run_id is None:
            await self._connect()
        return await self._client.cancel(cast("str", self.run_id))

    async def signal(self, name: str, data: Any = None) -> str:
        """Send the run a signal, see `DurableClient.signal`; connects first if it has no id."""
        if self.run_id is None:
            await self._connect()
        return await self._client.signal(cast("str", self.run_id), name, data)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Rewind:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connection. The run goes on."""
        await self._items.aclose()
        await self._drop()

    # --- connections

    async def _follow(self) -> AsyncGenerator[Event | Rewind]:
        while self.status is None:
            await self._connect()
            if self._response is None:
                break
            cause: Exception = ConnectionError("the body ended before the run was done")
            try:
                async with aclosing(self._read(self._response)) as items:
                    async for item in items:
                        yield item
            except httpx.TransportError as error:
                cause = error
            finally:
                await self._drop()
            if isinstance(cause, httpx.ReadTimeout) and await self._client.at_home():
                self._backoff.alive()  # silence alone is no lost server
            if self.status is None:
                await self._backoff.wait(cause)
        if self.status == "cancelled":
            raise RunCancelled(f"run {self.run_id} was cancelled")
        if self.status not in _WHOLE:
            raise RunFailed(f"run {self.run_id} {self.status}: {self._error or 'no error given'}")

    async def _connect(self) -> None:
        """Have an open stream, or know how the run ended."""
        while self._response is None and self.status is None:
            if self.run_id is None:
                await self._start()
            else:
                await self._resume(self.run_id)

    async def _start(self) -> None:
        assert self._opening is not None
        response = await self._client.answer(self._opening, self._backoff)
        run_id = run_id_of(response)
        if run_id is None or response.status_code >= 300:
            raise await refusal(response)
        self.run_id = run_id
        if is_event_stream(response):
            self._response = response
        else:  # accepted, or a body of another type: the run's own address streams it
            await response.aclose()

    async def _resume(self, run_id: str) -> None:
        call = self._client.resumption(run_id, self._cursor, self._offset)
        response = await self._client.answer(call, self._backoff)
        if response.status_code == 204:  # nothing after the cursor will come
            await response.aclose()
            info = await self._client.info(run_id)
            self.status, self._error = str(info["status"]), info["error"]
        elif response.status_code == 200 and is_event_stream(response):
            self._response = response
        else:
            raise await refusal(response)

    async def _drop(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()

    # --- what comes over them

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Event | Rewind]:
        decoder, comments = SSEDecoder(), 0
        chunks = cast("AsyncGenerator[bytes]", response.aiter_bytes())
        async with aclosing(chunks):
            async for chunk in chunks:
                for message in decoder.feed(chunk):
                    item = self._take(message)
                    if item is not None:
                        self._backoff.alive()
                        yield item
                    if self.status is not None:
                        return
                if decoder.comments != comments:
                    comments = decoder.comments
                    self._backoff.alive()
                if decoder.retry_ms is not None:
                    self._backoff.floor_s = decoder.retry_ms / 1000

    def _take(self, message: Message) -> Event | Rewind | None:
        """Make an item of a message; None for a duplicate or a control event without a place."""
        if message.event.startswith("durable.") and message.id is None:
            self._control(message)
            return None
        offset = self._place(message.id)
        if offset is None:
            return None
        self.waiting = None
        if message.event == "durable.rewind":
            to = int(json_object(message.data)["to"])
            self.events = [event for event in self.events if event.offset <= to]
            return Rewind(to, message.id or "", offset)
        event = Event(message.data, message.event, message.id or "", offset)
        self.events.append(event)
        return event

    def _control(self, message: Message) -> None:
        if message.event == "durable.done":
            told = json_object(message.data)
            self.status, self._error = str(told["status"]), told.get("error")
            self.waiting = None
        elif message.event == "durable.suspended":
            self._suspended(list(json_object(message.data)["waiting"]))
        elif message.event == "durable.resumed":
            self.waiting = None
        elif message.event == "durable.run":
            self.waiting = None  # a connection that finds the run suspended is told so next
            run_id = json_object(message.data).get("run_id")
            if run_id != self.run_id:
                raise HistoryDiverged(0, "", f"followed run {self.run_id}, was sent {run_id}")

    def _suspended(self, waiting: list[dict[str, Any]]) -> None:
        self.waiting = waiting
        self._backoff.alive()
        named = ", ".join(f"{wait['kind']} {wait['name']}" for wait in waiting)
        logger.info("run %s is suspended and waits for: %s", self.run_id, named)

    def _place(self, ident: str | None) -> int | None:
        """Return the event's offset, None if it was here before. Offsets are dense (I4).

        An event with an id of the app's own does not show its offset: it is counted.
        """
        due = self._offset + 1
        own = _OWN_ID.fullmatch(ident or "")
        if own is None or own["run"] != self.run_id:
            self._offset, self._cursor = due, None
            return due
        offset = int(own["offset"])
        if offset < due:
            return None
        if offset > due:
            raise HistoryDiverged(
                0,
                "",
                f"run {self.run_id}: event {offset} came where {due} was due, some are missing. "
                "Read the run anew with resume(run_id).",
            )
        self._offset, self._cursor = offset, ident
        return offset


def _offset_in(cursor: str) -> int:
    own = _OWN_ID.fullmatch(cursor)
    if own is None:
        raise ValueError(f"{cursor!r} is no id of a run's event; give an Event's id or offset")
    return int(own["offset"])
