"""The control routes under the prefix: runs, their streams, responses and journals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Route, Router

from durable_endpoints.asgi import metrics
from durable_endpoints.asgi.answering import Answering
from durable_endpoints.asgi.cursor import Cursor, resolve
from durable_endpoints.asgi.edge import node_risk, run_risk
from durable_endpoints.asgi.fields import entry_fields, json, run_fields
from durable_endpoints.asgi.problems import Problem, as_problem, without_response
from durable_endpoints.asgi.request import header
from durable_endpoints.asgi.tail import Tail
from durable_endpoints.console import Door
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Corrupt, DurableError, Fenced, StoreAway, StreamAborted
from durable_endpoints.labels import asked as labels_asked
from durable_endpoints.limits import LIST_ROWS_MAX, READERS_PER_RUN_MAX
from durable_endpoints.states import TERMINAL, TRANSITIONS
from durable_endpoints.stores.protocol import Query

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from durable_endpoints.asgi.host import Host
    from durable_endpoints.console.auth import AuthHook

_CLIENT_JS: Final = Path(__file__).parent / "client.js"
_NUMBER: Final = re.compile(r"-?[0-9]{1,12}")


class ControlRoutes:
    """An ASGI app for everything under the prefix."""

    def __init__(self, host: Host, console_auth: AuthHook | None = None) -> None:
        self._host = host
        self._console = Door(host, console_auth)
        self._router = Router(
            [
                Route("/runs", self.list_runs),
                Route("/runs/{run_id}", self.show, methods=["GET"]),
                Route("/runs/{run_id}", self.delete, methods=["DELETE"]),
                Route("/runs/{run_id}/journal", self.journal),
                Route("/runs/{run_id}/usage", self.usage),
                Route("/runs/{run_id}/cancel", self.cancel, methods=["POST"]),
                Route("/health", self.health),
                Route("/client.js", self.client_js),
                Route("/metrics", self.metrics),
                *Answering(host).routes,
            ]
        )
        self._raw: dict[str, Callable[[Scope, Receive, Send, str], Coroutine[Any, Any, None]]] = {
            "stream": self.stream,
            "response": self.response,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what goes wrong is answered as a problem."""
        path = get_route_path(scope)[len(self._host.options.prefix) :]
        streams = path.endswith("/stream") and _takes_events(scope)
        await _answered(self._answer(path, scope, receive, send), send, streams=streams)

    async def resend(self, cursor: Cursor, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a first request that came again with an id of ours: its run goes on."""

        async def go_on() -> None:
            run = await self._host.observe(scope, cursor.run_id)
            text = header(scope, b"last-event-id")
            await self.resume(run, text, scope, receive, send, wrapped=True)

        await _answered(go_on(), send, streams=True)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        parts = path.split("/")
        if len(parts) == 4 and parts[1] == "runs" and parts[3] in self._raw:
            await self._raw[parts[3]](scope, receive, send, parts[2])
            return
        if self._console.owns(path):
            await self._console(scope, receive, send, path)
            return
        inner = {**scope, "path": path, "root_path": "", "router": None,
            "durable.prefix": self._host.prefix_of(scope),
        }  # fmt: skip
        route, child = self._match(inner)
        inner.update(child)
        await route.handle(inner, receive, send)

    def _match(self, scope: Scope) -> tuple[Route, dict[str, Any]]:
        allowed: set[str] = set()
        for route in self._router.routes:
            match, child = route.matches(scope)
            if match == Match.FULL:
                return cast("Route", route), dict(child)
            if match == Match.PARTIAL:
                allowed |= cast("Route", route).methods or set()
        if allowed:
            raise _not_allowed(allowed)
        raise Problem(404, "not-found", "there is nothing at this address")

    # --- one run

    async def show(self, request: Request) -> Response:
        """GET runs/{id}."""
        run = await self._host.observe(request.scope, request.path_params["run_id"])
        fields = run_fields(run.record, full=await self._host.is_operator(request.scope))
        return json({**fields, **await run_risk(self._host.engine, run)})

    async def delete(self, request: Request) -> Response:
        """DELETE runs/{id}: for good (I21)."""
        run = await self._host.observe(request.scope, request.path_params["run_id"])
        if not await self._host.engine.delete(run):
            raise Problem(409, "run-unfinished", "cancel the run before you delete it")
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        """POST runs/{id}/cancel: durable when it answers."""
        run = await self._host.observe(request.scope, request.path_params["run_id"])
        if run.over:  # nobody is told of an end that is not durable (I1)
            await run.durable(run.terminal_seq)
        status = run.record.status
        if status == "cancelled":
            return json({"status": status})
        if not TRANSITIONS[status]:
            raise Problem(409, "run-ended", f"the run has ended: {status}")
        await self._host.engine.cancel(run, by=await self._host.principal_of(request.scope))
        return json({"status": run.record.status}, 202)

    async def journal(self, request: Request) -> Response:
        """GET runs/{id}/journal: a page of entries, for people to read."""
        run = await self._host.observe(request.scope, request.path_params["run_id"])
        after = _number(request.query_params.get("after"), -1, least=-1)
        limit = max(1, min(_number(request.query_params.get("limit"), 100), LIST_ROWS_MAX))
        known = run.durable_seq
        store = self._host.engine.store
        entries = await read_journal(store, run.id, seq=after + 1, last=known)
        if run.record.status in TERMINAL and entries and entries[-1].seq > run.durable_seq:
            raise Corrupt(f"run {run.id}: its row ends at {run.durable_seq}, its journal later")
        page = [entry for entry in entries[:limit] if entry.seq <= run.durable_seq]
        following = page[-1].seq if page and len(entries) > limit else None
        return json({"entries": [entry_fields(entry) for entry in page], "next": following})

    async def usage(self, request: Request) -> Response:
        """GET runs/{id}/usage: tokens of the model calls in its journal, and their cost."""
        from durable_endpoints.llm.usage import usage_fields, usage_of  # nobody else needs it

        run = await self._host.observe(request.scope, request.path_params["run_id"])
        known = run.durable_seq
        entries = await read_journal(self._host.engine.store, run.id, last=known)
        durable = [entry for entry in entries if entry.seq <= run.durable_seq]
        return json(usage_fields(usage_of(durable), self._host.options.prices))

    async def stream(self, scope: Scope, receive: Receive, send: Send, run_id: str) -> None:
        """GET runs/{id}/stream: the events behind a cursor, live."""
        host = self._host
        _only_get(scope)
        run = await host.observe(scope, run_id)
        wrapped = _takes_events(scope) or host.wants_control(scope)
        cursor = header(scope, b"last-event-id")
        if cursor is None:
            cursor = Request(scope).query_params.get("after")
        await self.resume(run, cursor, scope, receive, send, wrapped=wrapped)

    async def resume(
        self, run: LiveRun, cursor: str | None, scope: Scope, receive: Receive, send: Send,
        *, wrapped: bool,
    ) -> None:  # fmt: skip
        """Send a run's events from a cursor on.

        Raises: Problem.
        """
        host = self._host
        rewinds = host.wants_control(scope)
        if run.damaged:
            raise Corrupt(run.id)
        crowded = run.readers >= READERS_PER_RUN_MAX
        if (host.engine.draining or crowded) and wrapped:
            await _come_back(send)
            return
        if crowded:
            raise Problem(
                503, "too-many-readers", f"{READERS_PER_RUN_MAX:,} readers follow this run"
            )
        offset = await resolve(host.engine.store, run, cursor, rewinds=rewinds)
        finished = run.response_ended or run.ended
        # A head, the first event, without a body is nothing that an event stream shows.
        shown = offset if run.head is None else max(offset, 1)
        if (cursor or wrapped) and finished and shown >= run.durable_offset and not rewinds:
            # 204 is what tells an EventSource to stop (WHATWG HTML, section 9.2.3).
            await Response(status_code=204, headers={"durable-run-id": run.id})(
                scope, receive, send
            )
            return
        tail = Tail(
            host.engine.store, run, send, prefix=host.prefix_of(scope), offset=offset,
            wrapped=wrapped, rewinds=rewinds,
        )  # fmt: skip
        await _until_gone(tail, receive, full=await host.is_operator(scope))

    async def response(self, scope: Scope, receive: Receive, send: Send, run_id: str) -> None:
        """GET runs/{id}/response: the handler's own answer, when it is complete."""
        host = self._host
        _only_get(scope)
        run = await host.observe(scope, run_id)
        if run.damaged:
            raise Corrupt(run.id)
        full = await host.is_operator(scope)
        if run.response_ended:
            tail = Tail(host.engine.store, run, send, prefix=host.prefix_of(scope), raw=True)
            await _until_gone(tail, receive, full=full)
        elif run.ended or run.record.status == "diverged":
            raise without_response(run.record, full=full)
        else:
            answer = json(run_fields(run.record, full=full), 202, retry_after="1")
            await answer(scope, receive, send)

    # --- many runs, and the rest

    async def list_runs(self, request: Request) -> Response:
        """GET runs: for operators."""
        if not await self._host.is_operator(request.scope):
            detail = "the list of runs answers loopback only, or whom operator= lets in"
            raise Problem(403, "operators-only", detail)
        await self._host.ensure_open()
        asked = request.query_params
        status = asked.get("status")
        if status is not None and status not in TRANSITIONS:
            raise Problem(400, "unknown-status", f"choose one of {', '.join(TRANSITIONS)}")
        limit = max(1, min(_number(asked.get("limit"), 50), LIST_ROWS_MAX))
        query = Query(
            (status,) if status else (), asked.get("name"), None,
            asked.get("before"), limit, labels=_labels(asked.getlist("label")),
        )  # fmt: skip
        rows = await self._host.engine.list(query)
        following = rows[-1].run_id if len(rows) == limit else None
        return json({"runs": [run_fields(row, full=True) for row in rows], "next": following})

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """GET health."""
        engine = self._host.engine
        await self._host.ensure_open()
        if engine.draining or engine.leaving:
            return json({"status": "draining"}, 503, retry_after="1")
        if engine.away is not None:
            return json({"status": "away"}, 503, retry_after="1")
        log = engine.log
        lag_ms = round(log.lag_s * 1000, 1)
        return json({"status": "ok", "lag_ms": lag_ms, **node_risk(engine)})

    async def metrics(self, request: Request) -> Response:
        """GET metrics: for Prometheus; answers operators."""
        if not await self._host.is_operator(request.scope):
            detail = "metrics answer loopback only, or whom operator= lets in"
            raise Problem(403, "operators-only", detail)
        await self._host.ensure_open()
        text = metrics.render(await metrics.gathered(self._host.engine))
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def client_js(self, request: Request) -> Response:  # noqa: ARG002
        """GET client.js: the browser's client, a plain ES module."""
        return FileResponse(_CLIENT_JS, media_type="text/javascript")


async def _answered(work: Coroutine[Any, Any, None], send: Send, *, streams: bool) -> None:
    """Do what answers a request; what goes wrong is answered as a problem.

    `streams`: it is read as an event stream, by who would not come back after a problem.
    """
    try:
        await work
    except (StoreAway, Fenced) as reason:  # raised before anything was sent
        if streams:
            await _come_back(send)
        elif isinstance(reason, Fenced):  # the run goes on elsewhere: there it can be asked again
            text = str(reason)
            await Problem(503, "interrupted", text, [("retry-after", "1")]).answer(send)
        else:
            await as_problem(reason).answer(send)
    except DurableError as error:
        await as_problem(error).answer(send)
    except Problem as problem:
        await problem.answer(send)


def _takes_events(scope: Scope) -> bool:
    return "text/event-stream" in (header(scope, b"accept") or "")


def _not_allowed(methods: set[str]) -> Problem:
    allow = ", ".join(sorted(methods))
    return Problem(405, "method-not-allowed", f"use {allow}", [("allow", allow)])


def _only_get(scope: Scope) -> None:
    if scope["method"] != "GET":
        raise _not_allowed({"GET"})


def _labels(given: Sequence[str]) -> tuple[str, ...]:
    try:
        return labels_asked(given)
    except ValueError as error:
        raise Problem(400, "malformed-label", str(error)) from error


def _number(text: str | None, default: int, *, least: int | None = None) -> int:
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise Problem(400, "malformed-number", f"{text!r} is not a number")
    number = int(text)
    if least is not None and number < least:
        raise Problem(400, "malformed-number", f"{text} is too small: give {least} or more")
    return number


async def _come_back(send: Send) -> None:
    """Tell an EventSource to try again: after any other status it never would."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"retry: 1000\n\n"})


async def _until_gone(tail: Tail, receive: Receive, *, full: bool) -> None:
    """Follow a run until its end, or until the reader leaves; `full`: who is an operator.

    Raises: Problem; StreamAborted once something was sent.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    loop = asyncio.get_running_loop()
    following, leaving = loop.create_task(tail.follow()), loop.create_task(leave())
    try:
        await asyncio.wait([following, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        following.cancel()
        await asyncio.wait([following, leaving])
    if following.cancelled():
        return
    error = following.exception()
    if isinstance(error, StreamAborted) and not tail.began:
        if tail.run.ended:
            raise without_response(tail.run.record, full=full)
        raise Problem(503, "interrupted", str(error), [("retry-after", "1")])
    if error is not None and not isinstance(error, OSError):
        raise error
