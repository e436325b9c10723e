"""Routes for those who answer waiting runs: signals, events, retries; persons: `approving`."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_endpoints.asgi.approving import Approving
from durable_endpoints.asgi.bodies import json_of
from durable_endpoints.asgi.fields import json, run_fields
from durable_endpoints.asgi.problems import Problem
from durable_endpoints.asgi.request import idempotency_key
from durable_endpoints.engine.wait import LISTED
from durable_endpoints.engine.waiting import check_name
from durable_endpoints.errors import (
    AlreadyAnswered,
    Corrupt,
    Overloaded,
    RunEnded,
    RunNotFound,
    SignalRefused,
)
from durable_endpoints.limits import (
    EVENTS_REMEMBERED_MAX,
    IDEMPOTENCY_KEY_CHARS_MAX,
    LIST_ROWS_MAX,
)
from durable_endpoints.records import WaitRecord
from durable_endpoints.stores.protocol import Query, WaitQuery

if TYPE_CHECKING:
    from durable_endpoints.asgi.host import Host

_PLAIN: Final = frozenset({"signal"})
_Event = tuple[bool, str | None, str, str]  # from an operator, whose, name, id
logger = logging.getLogger("durable_endpoints")


@dataclass(slots=True)
class _Reached:
    """The runs that an event has reached; `late` says why another one has yet to take it."""

    runs: dict[str, None] = field(default_factory=dict)
    late: str | None = None


class Answering:
    """The routes, as a list for the router."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reached: OrderedDict[_Event, _Reached] = OrderedDict()
        self.routes = [
            Route("/runs/{run_id}/signals/{name}", self.signal, methods=["POST"]),
            Route("/runs/{run_id}/retry", self.retry, methods=["POST"]),
            Route("/runs/{run_id}/fork", self.fork, methods=["POST"]),
            Route("/runs/retry", self.retry_many, methods=["POST"]),
            Route("/events/{name}", self.event, methods=["POST"]),
            *Approving(host).routes,
        ]

    async def signal(self, request: Request) -> Response:
        """POST runs/{id}/signals/{name}: 202 once it is durable, 200 for one that was known."""
        host = self._host
        name, signal_id = _name(request), _signal_id(request)
        run = await host.observe(request.scope, request.path_params["run_id"])
        operator = await host.is_operator(request.scope)
        receipt = await host.engine.signal(
            run, name, await json_of(request), signal_id=signal_id,
            by=await host.principal_of(request.scope), kinds=LISTED if operator else _PLAIN,
        )  # fmt: skip
        status = 200 if receipt.outcome == "known" else 202
        return json({"outcome": receipt.outcome, "seq": receipt.seq}, status)

    async def event(self, request: Request) -> Response:
        """POST events/{name}: to every run that waits for it by these fields.

        Raises: Overloaded if one cannot take it now, once all the others have it.
        """
        host = self._host
        name, signal_id = _name(request), _signal_id(request)
        data = await json_of(request)
        if not isinstance(data, dict):
            raise Problem(422, "no-fields", "an event is a JSON object: runs match on its fields")
        principal = await host.principal_of(request.scope)
        operator = await host.is_operator(request.scope)
        if not operator and principal is None:
            detail = "events reach many runs: they are for loopback, a principal, or an operator"
            raise Problem(403, "operators-only", detail)
        await host.ensure_open()
        event = None if signal_id is None else (operator, principal, name, signal_id)
        known = self._reached.get(event) if event is not None else None
        if known is not None and known.late is None:
            return json({"runs": list(known.runs)})
        query = WaitQuery(
            name, ("signal",), payload=data, principal=principal, any_principal=operator,
            limit=LIST_ROWS_MAX,
        )  # fmt: skip
        reached = await self._give_all(query, data, signal_id or uuid4().hex, principal)
        if known is not None:
            reached.runs = known.runs | reached.runs
        if event is not None and reached.runs:
            self._reached[event] = reached
            while len(self._reached) > EVENTS_REMEMBERED_MAX:
                self._reached.popitem(last=False)
        if reached.late is not None:
            raise Overloaded(reached.late)
        if not reached.runs:
            raise Problem(404, "nobody-waits", f"no run waits for {name!r} with these fields")
        return json({"runs": list(reached.runs)}, 202)

    async def _give_all(
        self, query: WaitQuery, data: Any, event_id: str, by: str | None
    ) -> _Reached:
        """Give an event to all waits of a query, page by page; one holds up no other."""
        reached = _Reached()
        tried: set[tuple[str, str]] = set()
        while True:
            page = await self._host.engine.store.waits(query)
            fresh = [wait for wait in page if (wait.run_id, wait.ident) not in tried]
            for wait in fresh:
                tried.add((wait.run_id, wait.ident))
                try:
                    if await self._give(wait, data, event_id, by):
                        reached.runs[wait.run_id] = None
                except Overloaded as error:
                    reached.late = str(error)
            if not fresh or len(page) < query.limit:
                return reached

    async def _give(self, wait: WaitRecord, data: Any, event_id: str, by: str | None) -> bool:
        engine = self._host.engine
        try:
            run = await engine.observe(wait.run_id, wait.principal)
            await engine.signal(
                run, wait.name, data, signal_id=event_id, by=by, kinds=_PLAIN, ident=wait.ident
            )
        except (RunEnded, RunNotFound, AlreadyAnswered, SignalRefused):
            return False  # somebody was faster
        except Corrupt as error:
            logger.warning("run %s is not reached by event %r: %s", wait.run_id, wait.name, error)
            return False
        return True

    async def retry(self, request: Request) -> Response:
        """POST runs/{id}/retry: have a dead or diverged run go on."""
        host = self._host
        run = await host.observe(request.scope, request.path_params["run_id"])
        if not await host.engine.retry(run, by=await host.principal_of(request.scope)):
            detail = f"the run is {run.record.status}: only dead and diverged runs are retried"
            raise Problem(409, "not-dead", detail)
        record = await host.engine.store.get(run.id) or run.record
        return json(run_fields(record, full=await host.is_operator(request.scope)), 202)

    async def fork(self, request: Request) -> Response:
        """POST runs/{id}/fork: `{"from_step": seq, "input": text, "results": {key: value}}`."""
        host = self._host
        run = await host.observe(request.scope, request.path_params["run_id"])
        asked = await json_of(request)
        if not isinstance(asked, dict) or type(asked.get("from_step")) is not int:
            raise Problem(422, "no-step", 'send {"from_step": …}, the seq of a journal entry')
        edits, text = asked.get("results") or {}, asked.get("input")
        if not isinstance(edits, dict) or not isinstance(text, str | None):
            raise Problem(422, "malformed-edits", '"results" is an object by key, "input" a text')
        results = {key: orjson.dumps(value) for key, value in edits.items()}
        payload = None if text is None else text.encode()
        try:
            forked = await host.engine.fork(
                run,
                asked["from_step"],
                payload=payload,
                results=results,
                by=await host.principal_of(request.scope),
            )
        except ValueError as error:
            raise Problem(422, "no-step", str(error)) from error
        prefix = request.scope.get("durable.prefix", host.options.prefix)
        location = f"{prefix}/runs/{forked.id}"
        return json({"id": forked.id}, 202, location=location)

    async def retry_many(self, request: Request) -> Response:
        """POST runs/retry: a page of the dead runs, of one `name` if given; for operators.

        `next` is where the following page begins (`?before=`); null after the last.
        """
        host = self._host
        if not await host.is_operator(request.scope):
            raise Problem(403, "operators-only", "retrying many runs is for operators")
        await host.ensure_open()
        asked = request.query_params
        query = Query(("dead",), asked.get("name"), before=asked.get("before"), limit=LIST_ROWS_MAX)
        rows = await host.engine.list(query)
        retried = []
        for record in rows:
            try:
                run = await host.engine.observe(record.run_id, record.principal)
                if await host.engine.retry(run):
                    retried.append(run.id)
            except (RunNotFound, Overloaded):
                continue  # deleted meanwhile, or another run of its concurrency key is at work
        following = rows[-1].run_id if len(rows) == LIST_ROWS_MAX else None
        return json({"retried": retried, "next": following}, 202)


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    try:
        check_name(name)
    except ValueError as error:
        raise Problem(400, "malformed-name", str(error)) from error
    return name


def _signal_id(request: Request) -> str | None:
    """Return what makes two sendings one signal (`webhook-id`: Standard Webhooks)."""
    key = idempotency_key(request.scope)
    if key is not None:
        return key
    key = request.headers.get("webhook-id")
    if key is not None and not (0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX and key.isprintable()):
        detail = f"webhook-id has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"
        raise Problem(400, "malformed-webhook-id", detail)
    return key
