"""Routes for those who answer waiting runs: signals, events, approvals, retries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from durable_endpoints.asgi import approval_page
from durable_endpoints.asgi.fields import iso, json, run_fields
from durable_endpoints.asgi.problems import Problem
from durable_endpoints.asgi.request import idempotency_key
from durable_endpoints.engine.waiting import check_name
from durable_endpoints.engine.waits import LISTED
from durable_endpoints.errors import AlreadyAnswered, RunEnded, RunNotFound, SignalRefused
from durable_endpoints.limits import EVENTS_REMEMBERED_MAX, LIST_ROWS_MAX, SIGNAL_BYTES_MAX
from durable_endpoints.records import WaitRecord
from durable_endpoints.stores.protocol import Query, WaitQuery

if TYPE_CHECKING:
    from durable_endpoints.asgi.host import Host

_PLAIN: Final = frozenset({"signal"})
_ASKED: Final = ("approval", "decision")


class Answering:
    """The routes, as a list for the router."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._answered: OrderedDict[tuple[str, str], list[str]] = OrderedDict()
        self.routes = [
            Route("/runs/{run_id}/signals/{name}", self.signal, methods=["POST"]),
            Route("/runs/{run_id}/retry", self.retry, methods=["POST"]),
            Route("/runs/retry", self.retry_many, methods=["POST"]),
            Route("/events/{name}", self.event, methods=["POST"]),
            Route("/approvals", self.approvals, methods=["GET"]),
            Route("/approvals/{token}", self.decide, methods=["GET", "POST"]),
        ]

    async def signal(self, request: Request) -> Response:
        """POST runs/{id}/signals/{name}: 202 once it is durable, 200 for one that was known."""
        host = self._host
        name = _name(request)
        run = await host.observe(request.scope, request.path_params["run_id"])
        operator = await host.is_operator(request.scope)
        receipt = await host.engine.signal(
            run, name, await _json_of(request), signal_id=_signal_id(request),
            by=await host.principal_of(request.scope), kinds=LISTED if operator else _PLAIN,
        )  # fmt: skip
        status = 200 if receipt.outcome == "known" else 202
        return json({"outcome": receipt.outcome, "seq": receipt.seq}, status)

    async def event(self, request: Request) -> Response:
        """POST events/{name}: to every run that waits for it by these fields."""
        host = self._host
        name, data = _name(request), await _json_of(request)
        if not isinstance(data, dict):
            raise Problem(422, "no-fields", "an event is a JSON object: runs match on its fields")
        principal = await host.principal_of(request.scope)
        operator = await host.is_operator(request.scope)
        if not operator and principal is None:
            detail = "events reach many runs: they are for loopback, a principal, or an operator"
            raise Problem(403, "operators-only", detail)
        await host.ensure_open()
        event_id = _signal_id(request)
        known = self._answered.get((name, event_id)) if event_id is not None else None
        if known is not None:
            return json({"runs": known})
        query = WaitQuery(
            name, ("signal",), payload=data, principal=principal, any_principal=operator,
            limit=LIST_ROWS_MAX,
        )  # fmt: skip
        reached = [
            wait.run_id
            for wait in await host.engine.store.waits(query)
            if await self._give(wait, data, event_id, principal)
        ]
        if not reached:
            raise Problem(404, "nobody-waits", f"no run waits for {name!r} with these fields")
        if event_id is not None:
            self._answered[name, event_id] = reached
            while len(self._answered) > EVENTS_REMEMBERED_MAX:
                self._answered.popitem(last=False)
        return json({"runs": reached}, 202)

    async def _give(
        self, wait: WaitRecord, data: Any, event_id: str | None, by: str | None
    ) -> bool:
        engine = self._host.engine
        try:
            run = await engine.observe(wait.run_id, wait.principal)
            await engine.signal(
                run, wait.name, data, signal_id=event_id, by=by, kinds=_PLAIN, ident=wait.ident
            )
        except (RunEnded, RunNotFound, AlreadyAnswered, SignalRefused):
            return False  # somebody was faster
        return True

    async def approvals(self, request: Request) -> Response:
        """GET approvals: what persons are asked. Links are for operators."""
        host = self._host
        principal = await host.principal_of(request.scope)
        operator = await host.is_operator(request.scope)
        if not operator and principal is None:
            detail = "open approvals are for loopback, a principal, or whom operator= lets in"
            raise Problem(403, "operators-only", detail)
        await host.ensure_open()
        query = WaitQuery(
            kinds=_ASKED, principal=principal, any_principal=operator, limit=LIST_ROWS_MAX
        )
        waits = await host.engine.store.waits(query)
        return json({"approvals": [self._shown(wait, request, operator) for wait in waits]})

    def _shown(self, wait: WaitRecord, request: Request, operator: bool) -> dict[str, Any]:
        shown = {
            "run_id": wait.run_id,
            "kind": wait.kind,
            "name": wait.name,
            "summary": wait.summary,
            "since": iso(wait.since_ms),
            "until": None if wait.until_ms is None else iso(wait.until_ms),
        }
        if operator and wait.kind == "approval":
            path = self._host.signing.path(wait.run_id, wait.ident, wait.until_ms)
            shown["link"] = request.scope.get("app_root_path", "") + path
        return shown

    async def decide(self, request: Request) -> Response:
        """GET approvals/{token} shows what is asked and changes nothing; POST decides."""
        host = self._host
        await host.ensure_open()
        link = host.signing.verify(request.path_params["token"])
        record = await host.engine.store.get(link.run_id)
        if record is None:
            raise Problem(410, "run-deleted", "the run that asked is gone")
        wait = await self._wait_of(link.run_id, link.wait)
        html = "application/json" not in request.headers.get("accept", "text/html")
        if request.method == "GET":
            if not html:
                return json(self._shown(wait, request, False) if wait else {"decided": True})
            return _page(approval_page.question(wait) if wait else approval_page.over(record))
        decision, by = await _decision_of(request)
        by = await host.principal_of(request.scope) or by
        name = wait.name if wait is not None else "approval"
        run = await host.engine.observe(link.run_id, record.principal)
        try:
            await host.engine.signal(run, name, decision, by=by, ident=link.wait)
        except (AlreadyAnswered, RunEnded, SignalRefused) as error:
            if html and _is_form(request):
                return _page(approval_page.too_late(error), 409)
            if isinstance(error, SignalRefused):
                raise Problem(409, "not-waiting", str(error)) from error
            raise
        if html and _is_form(request):
            return _page(approval_page.decided(decision))
        return json({"decided": decision}, 202)

    async def _wait_of(self, run_id: str, ident: str) -> WaitRecord | None:
        waits = await self._host.engine.store.waits(WaitQuery(run_id=run_id, limit=LIST_ROWS_MAX))
        return next((wait for wait in waits if wait.ident == ident), None)

    async def retry(self, request: Request) -> Response:
        """POST runs/{id}/retry: have a dead or diverged run go on."""
        host = self._host
        run = await host.observe(request.scope, request.path_params["run_id"])
        if not await host.engine.retry(run):
            detail = f"the run is {run.record.status}: only dead and diverged runs are retried"
            raise Problem(409, "not-dead", detail)
        record = await host.engine.store.get(run.id) or run.record
        return json(run_fields(record, full=await host.is_operator(request.scope)), 202)

    async def retry_many(self, request: Request) -> Response:
        """POST runs/retry: all dead runs, of one `name` if given; for operators."""
        host = self._host
        if not await host.is_operator(request.scope):
            raise Problem(403, "operators-only", "retrying many runs is for operators")
        await host.ensure_open()
        name = request.query_params.get("name")
        retried = []
        for record in await host.engine.list(Query(("dead",), name, limit=LIST_ROWS_MAX)):
            run = await host.engine.observe(record.run_id, record.principal)
            if await host.engine.retry(run):
                retried.append(run.id)
        return json({"retried": retried}, 202)


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    try:
        check_name(name)
    except ValueError as error:
        raise Problem(400, "malformed-name", str(error)) from error
    return name


def _signal_id(request: Request) -> str | None:
    """Return what makes two sendings one signal (`webhook-id`: Standard Webhooks)."""
    key = idempotency_key(request.scope) or request.headers.get("webhook-id")
    return None if key is None else key[:255]


async def _body_of(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > SIGNAL_BYTES_MAX:
            raise Problem(413, "body-too-large", f"send at most {SIGNAL_BYTES_MAX:,} bytes")
    return body


async def _json_of(request: Request) -> Any:
    body = await _body_of(request)
    if not body.strip():
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "malformed-json", f"the body is no JSON: {error}") from error


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.startswith("application/x-www-form-urlencoded")


async def _decision_of(request: Request) -> tuple[dict[str, Any], str | None]:
    """Return what a person decided, and who they say they are."""
    data: Any
    if _is_form(request):
        fields = approval_page.parse_form(await _body_of(request))
        data = {"approved": fields.get("decision") == "approve", **fields}
        if fields.get("decision") not in ("approve", "decline"):
            raise Problem(422, "no-decision", "choose approve or decline")
    else:
        data = await _json_of(request)
    if not isinstance(data, Mapping) or not isinstance(data.get("approved"), bool):
        raise Problem(422, "no-decision", 'send {"approved": true} or {"approved": false}')
    comment, by = data.get("comment"), data.get("by")
    decision = {"approved": data["approved"], "comment": comment if comment else None}
    return decision, str(by)[:200] if by else None


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status, headers=approval_page.HEADERS)
