"""`DurableClient`: what to send, and sending it again until there is an answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from durable_endpoints.client.answers import (
    ConnectionLost,
    json_object,
    nobody_home,
    refusal,
    retry_after_s,
    run_id_of,
)
from durable_endpoints.client.backoff import Backoff
from durable_endpoints.client.stream import RunStream
from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.limits import HEARTBEAT_S

CONNECT_S: Final = 10.0
# Silence of two and a half heartbeats: one may be lost or late, two are not.
IDLE_HEARTBEATS: Final = 2.5
# A server that was silent for so long is not restarting, it is gone.
PATIENCE_S: Final = 300.0
# Between two looks at a run that is still at work, where the server names no wait.
POLL_S: Final = 1.0

_STREAM_HEADERS: Final = {"Durable-Events": "1", "Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as often as it has to be sent."""

    method: str
    url: str
    headers: httpx.Headers
    params: Mapping[str, str] | None = None
    json: Any = None
    content: bytes | None = None
    # Added when the request is sent again: the first answer may have been lost, so all that is
    # wanted of a further one is the id of the run.
    again: Mapping[str, str] | None = None


class DurableClient:
    """Speaks to an app behind `DurableMiddleware`; `async with` it, or call `aclose()`.

    Args: `base_url` of the app; `headers` for every request; `prefix` and `heartbeat_s` as the
    middleware has them; `patience_s`, seconds that a silent server is tried (inf: for ever);
    `http`, an `httpx.AsyncClient` of your own for auth, proxies or TLS, which you close.

    Send only to durable endpoints: a request whose answer was lost is sent again with the same
    `Idempotency-Key`, and an endpoint that is not durable would do its work twice.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: str = "/_durable",
        heartbeat_s: float = HEARTBEAT_S,
        patience_s: float = PATIENCE_S,
        http: httpx.AsyncClient | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._headers = httpx.Headers(headers)
        self._prefix = "/" + prefix.strip("/")
        self._timeout = httpx.Timeout(IDLE_HEARTBEATS * heartbeat_s, connect=CONNECT_S, pool=None)
        self._patience_s = patience_s
        self._clock = clock or SystemClock()
        self._owned = http is None
        # A stream holds its connection for as long as its run lasts: no limit on their number.
        self._http = http or httpx.AsyncClient(limits=httpx.Limits(max_connections=None))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Runs go on."""
        if self._owned:
            await self._http.aclose()

    def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> RunStream:
        """Start a run, or attach to the one with this `idempotency_key`, and follow its events.

        The request goes out with `async with`, or when the first item is asked for. An endpoint
        that answers with another type than an event stream works as well: every chunk of its
        body is one event.
        """
        call = self._call(method, path, json, content, params, headers, idempotency_key)
        wanted = {"Accept": "text/event-stream, */*;q=0.5", **_STREAM_HEADERS}
        for name, value in wanted.items():
            call.headers.setdefault(name, value)
        return RunStream(self, call, None, 0)

    def resume(self, run_id: str, after: int | str = 0) -> RunStream:
        """Follow a run after an `Event.offset` or `Event.id`; from its start by default.

        Raises: ValueError if `after` is a string, but no id of a run's event.
        """
        return RunStream(self, None, run_id, after)

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        """Return the endpoint's whole response, whatever its status.

        When the connection is lost, the run is asked for it until it has one.

        Raises: ConnectionLost.
        """
        call = self._call(method, path, json, content, params, headers, idempotency_key)
        backoff = self.backoff()
        response = await self.answer(call, backoff)
        run_id = run_id_of(response)
        asked = response.request.headers.get("prefer") == "respond-async"
        if run_id is not None and asked and response.status_code == 202:
            await response.aclose()
            return await self._poll(run_id, backoff)
        try:
            await response.aread()
        except httpx.TransportError as error:
            if run_id is None:
                raise ConnectionLost("the answer broke off, and no durable run gave it") from error
            return await self._poll(run_id, backoff)
        return response

    async def cancel(self, run_id: str) -> str:
        """Ask a run to stop; it does, once this returns, over any crash.

        Returns its status: "running" while it winds up, "cancelled" after that, and another
        where it had ended before.

        Raises: RunNotFound, ResponseError, ConnectionLost.
        """
        call = self._run_call(run_id, "/cancel", "POST")
        response = await self._whole(call, self.backoff())
        if response.status_code == 409:
            return str((await self.info(run_id))["status"])
        return str((await self._object(response))["status"])

    async def signal(
        self, run_id: str, name: str, data: Any = None, *, idempotency_key: str | None = None
    ) -> str:
        """Send a run a signal of JSON data; it has it, once, when this returns.

        Returns "taken" by a wait, "kept" for one, or "known": this `idempotency_key` was there
        before, or an answer was lost on the way.

        Raises: RunNotFound, ConnectionLost; ResponseError if the run does not take it: `problem`
        ends with already-answered, run-ended or signal-refused.
        """
        call = self._run_call(run_id, f"/signals/{quote(name, safe='')}", "POST")
        call.headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        answer = await self._whole(replace(call, json=data), self.backoff())
        return str((await self._object(answer))["outcome"])

    async def retry(self, run_id: str) -> str:
        """Have a dead or diverged run go on from where it stopped. Returns its status.

        Raises: RunNotFound, ConnectionLost; ResponseError for a run that is neither.
        """
        call = self._run_call(run_id, "/retry", "POST")
        return str((await self._object(await self._whole(call, self.backoff())))["status"])

    async def info(self, run_id: str) -> dict[str, Any]:
        """Return what the server knows of a run: status, error, waits, version, counts and times.

        Raises: RunNotFound, ResponseError, ConnectionLost.
        """
        return await self._object(await self._whole(self._run_call(run_id), self.backoff()))

    # --- for RunStream

    def backoff(self) -> Backoff:
        """Return the waits for one run."""
        return Backoff(self._patience_s, self._clock)

    def resumption(self, run_id: str, cursor: str | None, offset: int) -> Call:
        """Return the request for the rest of a run's stream, by a verifiable cursor if known."""
        call = self._run_call(run_id, "/stream")
        call.headers.update({"Accept": "text/event-stream", **_STREAM_HEADERS})
        if cursor:
            call.headers["Last-Event-ID"] = cursor
            return call
        return replace(call, params={"after": str(offset)}) if offset else call

    async def answer(self, call: Call, backoff: Backoff) -> httpx.Response:
        """Send until somebody answers. The body is not read yet. Raises ConnectionLost."""
        headers = call.headers
        while True:
            request = self._http.build_request(
                call.method, call.url, params=call.params, headers=headers, json=call.json,
                content=call.content, timeout=self._timeout,
            )  # fmt: skip
            wait_s = 0.0
            try:
                response = await self._http.send(request, stream=True)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
                raise  # the request itself is wrong
            except httpx.TransportError as error:
                cause: Exception = error
                if isinstance(error, httpx.ReadTimeout) and await self.at_home():
                    backoff.alive()  # the run is at work and has nothing to say yet
            else:
                if not nobody_home(response):
                    return response
                wait_s = retry_after_s(response, self._clock.now_ms())
                cause = await refusal(response)
            await backoff.wait(cause, wait_s)
            headers = httpx.Headers([*call.headers.items(), *(call.again or {}).items()])

    async def at_home(self) -> bool:
        """Whether the server answers at all."""
        url = f"{self._base}{self._prefix}/health"
        try:
            answer = await self._http.get(url, headers=self._headers, timeout=CONNECT_S)
        except httpx.TransportError:
            return False
        return answer.is_success

    # --- small parts

    def _call(
        self,
        method: str,
        path: str,
        json: Any,
        content: bytes | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        key: str | None,
    ) -> Call:
        merged = httpx.Headers(self._headers)
        merged.update(headers)
        if key is not None:
            merged["Idempotency-Key"] = key
        merged.setdefault("Idempotency-Key", str(uuid.uuid4()))
        again = None if "prefer" in merged else {"Prefer": "respond-async"}
        return Call(method, self._base + path, merged, params, json, content, again)

    def _run_call(self, run_id: str, tail: str = "", method: str = "GET") -> Call:
        url = f"{self._base}{self._prefix}/runs/{quote(run_id, safe='')}{tail}"
        return Call(method, url, httpx.Headers(self._headers))

    async def _object(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 300:
            raise await refusal(response)
        return json_object(response.content)

    async def _whole(self, call: Call, backoff: Backoff) -> httpx.Response:
        """Send a call that may be sent any number of times, until its whole answer is here."""
        while True:
            response = await self.answer(call, backoff)
            try:
                await response.aread()
            except httpx.TransportError as error:
                await backoff.wait(error)
            else:
                backoff.alive()
                return response

    async def _poll(self, run_id: str, backoff: Backoff) -> httpx.Response:
        """Ask for the run's whole response until it has one."""
        while True:
            response = await self._whole(self._run_call(run_id, "/response"), backoff)
            if response.status_code != 202 or "retry-after" not in response.headers:
                return response  # a handler's own 202 has no Retry-After of ours
            await asyncio.sleep(retry_after_s(response, self._clock.now_ms()) or POLL_S)
