"""Routes for persons: the open approvals, and the signed links under which they are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from durable_endpoints.asgi import approval_page
from durable_endpoints.asgi.bodies import body_of, json_of
from durable_endpoints.asgi.fields import iso, json
from durable_endpoints.asgi.problems import Problem, as_problem
from durable_endpoints.engine.reader import read_journal
from durable_endpoints.errors import AlreadyAnswered, NotDurable, RunEnded, SignalRefused
from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.links import BadLink, ExpiredLink, Link
from durable_endpoints.records import Kind, WaitRecord
from durable_endpoints.stores.protocol import WaitQuery

if TYPE_CHECKING:
    from durable_endpoints.asgi.host import Host

_ASKED: Final = ("approval", "decision")
_LINKED: Final = frozenset({"approval"})
_BY_CHARS_MAX: Final = 200
_COMMENT_CHARS_MAX: Final = 2000


class Approving:
    """The routes, as a list for the router."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.routes = [
            Route("/approvals", self.approvals, methods=["GET"]),
            Route("/approvals/{token}", self.decide, methods=["GET", "POST"]),
        ]

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
        shown = []
        for wait in await host.engine.store.waits(query):
            fields = _shown(wait)
            if operator and wait.kind == "approval":
                fields["link"] = self._link_to(wait, request)
            shown.append(fields)
        return json({"approvals": shown})

    def _link_to(self, wait: WaitRecord, request: Request) -> str:
        """Return a link's path as the client that asked for it reaches it."""
        prefix = self._host.options.prefix
        try:
            path = self._host.signing.path(wait.run_id, wait.ident, wait.until_ms)
        except NotDurable as error:
            raise Problem(503, "no-signing-secret", str(error)) from error
        outer: str = request.scope.get("durable.prefix", prefix)
        return outer + path.removeprefix(prefix)

    async def decide(self, request: Request) -> Response:
        """GET approvals/{token} shows what is asked and changes nothing; POST decides."""
        try:
            if request.method == "POST":
                return await self._decided(request)
            return await self._asked(request)
        except (BadLink, ExpiredLink, AlreadyAnswered, RunEnded) as error:
            if not _is_browser(request):
                raise
            return _page(approval_page.refused(error), as_problem(error).status)
        except Problem as problem:
            if not _is_browser(request):
                raise
            return _page(approval_page.problem(problem.detail), problem.status)

    async def _link(self, request: Request) -> Link:
        await self._host.ensure_open()
        try:
            return self._host.signing.verify(request.path_params["token"])
        except NotDurable as error:
            raise Problem(503, "no-signing-secret", str(error)) from error

    async def _asked(self, request: Request) -> Response:
        link = await self._link(request)
        record = await self._host.engine.store.get(link.run_id)
        if record is None:
            raise _deleted()
        wait = await self._wait_of(link)
        first = None if wait is not None else await self._first(link)
        if "application/json" in request.headers.get("accept", ""):
            fields = {"run_id": link.run_id} if wait is None else _shown(wait)
            answer = None if first is None else _answer(first)
            return json({**fields, "open": wait is not None, "answer": answer})
        if wait is not None:
            return _page(approval_page.question(wait))
        return _page(approval_page.over(record, first))

    async def _decided(self, request: Request) -> Response:
        host, link = self._host, await self._link(request)
        record = await host.engine.store.get(link.run_id)
        if record is None:
            raise _deleted()
        decision, by = await _decision_of(request)
        by = await host.principal_of(request.scope) or by
        wait = await self._wait_of(link)
        name = wait.name if wait is not None else "approval"
        run = await host.engine.observe(link.run_id, record.principal)
        try:
            await host.engine.signal(run, name, decision, by=by, kinds=_LINKED, ident=link.wait)
        except SignalRefused as error:
            record = await host.engine.store.get(link.run_id) or record
            if record.status not in ("running", "suspended"):
                raise RunEnded(link.run_id, record.status) from error
            raise Problem(409, "not-waiting", str(error)) from error
        if _is_browser(request):
            return _page(approval_page.decided(decision))
        return json({"decided": decision}, 202)

    async def _wait_of(self, link: Link) -> WaitRecord | None:
        query = WaitQuery(run_id=link.run_id, limit=LIST_ROWS_MAX)
        waits = await self._host.engine.store.waits(query)
        return next((wait for wait in waits if wait.ident == link.wait), None)

    async def _first(self, link: Link) -> bytes | None:
        """Return the signal that answered a wait, as it is in the journal."""
        signals: dict[int, bytes] = {}
        for entry in await read_journal(self._host.engine.store, link.run_id):
            if entry.kind == Kind.SIGNAL:
                signals[entry.seq] = entry.payload
            elif entry.kind == Kind.RECEIVED and entry.key.partition(" ")[0] == link.wait:
                return signals.get(orjson.loads(entry.payload).get("signal", -1))
        return None


def _shown(wait: WaitRecord) -> dict[str, Any]:
    return {
        "run_id": wait.run_id,
        "kind": wait.kind,
        "name": wait.name,
        "summary": wait.summary,
        "since": iso(wait.since_ms),
        "until": None if wait.until_ms is None else iso(wait.until_ms),
    }


def _answer(first: bytes) -> dict[str, Any]:
    signal = orjson.loads(first)
    return {"data": signal["data"], "by": signal["by"], "at": iso(signal["at"])}


def _deleted() -> Problem:
    return Problem(410, "run-deleted", "the run that asked is gone")


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.startswith("application/x-www-form-urlencoded")


def _is_browser(request: Request) -> bool:
    """Say whether a person looks at the answer: programs get JSON."""
    accept = request.headers.get("accept", "")
    return "application/json" not in accept and (_is_form(request) or "text/html" in accept)


async def _decision_of(request: Request) -> tuple[dict[str, Any], str | None]:
    """Return what a person decided, and who they say they are."""
    data: Any
    if _is_form(request):
        fields = approval_page.parse_form(await body_of(request))
        if fields.get("decision") not in ("approve", "decline"):
            raise Problem(422, "no-decision", "choose approve or decline")
        data = {**fields, "approved": fields["decision"] == "approve"}
    else:
        data = await json_of(request)
    if not isinstance(data, Mapping) or not isinstance(data.get("approved"), bool):
        raise Problem(422, "no-decision", 'send {"approved": true} or {"approved": false}')
    by, comment = _text(data, "by", _BY_CHARS_MAX), _text(data, "comment", _COMMENT_CHARS_MAX)
    return {"approved": data["approved"], "comment": comment}, by


def _text(data: Mapping[str, Any], name: str, chars_max: int) -> str | None:
    text = data.get(name)
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > chars_max:
        detail = f"{name!r} is a text of at most {chars_max:,} characters"
        raise Problem(422, "no-decision", detail)
    return text


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status, headers=approval_page.HEADERS)
