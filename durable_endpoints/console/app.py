"""The console: an ASGI app below the middleware's prefix, rendered on the server.

It reads durable state only, through the store; it acts through the engine, as the control routes
do. Nothing of it runs while nobody looks.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route

from durable_endpoints.console import auth, deeds, files, forks, pages, run_pages, streaming
from durable_endpoints.console.audit import Audit
from durable_endpoints.console.auth import AuthHook, Refused, Visitor
from durable_endpoints.console.reading import Digests
from durable_endpoints.console.sampler import Sampler
from durable_endpoints.console.tally import Tally
from durable_endpoints.console.visit import Visit, error_page
from durable_endpoints.errors import Corrupt, RunDeleted, RunNotFound, StoreError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from durable_endpoints.engine.engine import Engine

View = Callable[[Visit], Awaitable[Response]]

# Scripts and styles come from our own files only; nothing is framed, nothing is sniffed.
SECURITY: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not no-referrer: a browser would then send forms with the origin "null".
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Surroundings(Protocol):
    """What the console needs of the middleware around it."""

    engine: Engine
    options: Any

    async def ensure_open(self) -> None:
        """Open the engine, if nobody has."""

    async def is_operator(self, scope: Scope) -> bool:
        """Say whether the client may see all runs."""

    def prefix_of(self, scope: Scope) -> str:
        """Return the path of the control routes, as the client sees it."""


class Console:
    """Serves the pages. `auth` says who may look and who may act; default: loopback only."""

    def __init__(self, around: Surroundings, auth: AuthHook | None = None) -> None:
        self.around = around
        self.audit = Audit()
        self.tally = Tally(around.engine)
        self.digests = Digests(around.engine.store)
        self.sampler = Sampler(around.engine)
        self.settings: dict[str, Any] = {}
        self.settings_until_ms = 0
        self._auth = auth
        run = "/console/runs/{run_id}"
        self._routes = [
            self._route("/", pages.runs),
            self._route("/console/health", pages.health),
            self._route("/console/activity", pages.activity),
            self._route("/console/waiting", pages.waiting),
            self._route("/console/many/{action}", deeds.act_on_many, "POST"),
            self._route(run, run_pages.timeline),
            self._route(f"{run}/head", run_pages.head),
            self._route(f"{run}/request", run_pages.request),
            self._route(f"{run}/events", run_pages.events),
            self._route(f"{run}/events.sse", streaming.follow),
            self._route(f"{run}/journal", run_pages.journal),
            self._route(f"{run}/journal.json", run_pages.download),
            self._route(f"{run}/entries/{{seq:int}}", run_pages.entry),
            self._route(f"{run}/compare", forks.compare),
            self._route(f"{run}/fork", forks.fork, "POST"),
            self._route(f"{run}/actions/{{action}}", deeds.act, "POST"),
        ]

    def _route(self, path: str, view: View, method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            return await view(await self._visit(request))

        return Route(path, endpoint, methods=[method])

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request; `path` is what follows the prefix."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [*message["headers"], *SECURITY]
                if not any(name == b"cache-control" for name, _ in given):
                    given.append((b"cache-control", b"no-store"))
                message = {**message, "headers": given}
            await send(message)

        response = await self._answer(scope, receive, path)
        await response(scope, receive, guarded)

    async def _answer(self, scope: Scope, receive: Receive, path: str) -> Response:
        request = Request(scope, receive)
        prefix = self.around.prefix_of(scope)
        if path == "":  # relative links need the slash
            return RedirectResponse(f"{prefix}/", 307)
        if path.startswith("/console/static/"):
            return files.serve(path.rpartition("/")[2])
        try:
            await self.around.ensure_open()
            route, child = self._match({**scope, "path": path, "root_path": "", "router": None})
            return await self._call(route, Request({**scope, **child}, receive))
        except Refused as error:
            return error_page(request, prefix, error)
        except RunDeleted:
            return error_page(request, prefix, Refused(410, "Deleted", "The run was deleted."))
        except RunNotFound:
            return error_page(request, prefix, Refused(404, "No such run", "It may be deleted."))
        except Corrupt as error:
            found_error = Refused(500, "The journal is damaged", str(error))
            return error_page(request, prefix, found_error)
        except StoreError as error:
            return error_page(request, prefix, Refused(503, "No journal now", str(error)))

    def _match(self, scope: Scope) -> tuple[Route, Scope]:
        for route in self._routes:
            match, child = route.matches(scope)
            if match == Match.FULL:
                return route, child
            if match == Match.PARTIAL:
                raise Refused(405, "Not this way", "This address takes another method.")
        raise Refused(404, "Nothing here", "There is no page at this address.")

    @staticmethod
    async def _call(route: Route, request: Request) -> Response:
        answer: Any = route.endpoint(request)
        response: Response = await answer if inspect.isawaitable(answer) else answer
        return response

    async def _visit(self, request: Request) -> Visit:
        visitor = await self._visitor(request)
        self.sampler.wanted()
        return Visit(self, request, visitor, self.around.prefix_of(request.scope))

    async def _visitor(self, connection: HTTPConnection) -> Visitor:
        if self._auth is not None:
            return await auth.ask(self._auth, connection)
        if not await self.around.is_operator(connection.scope):
            raise Refused(
                403, "Not from here",
                "The console answers this machine only. Give the middleware console_auth= "
                "(or operator=) to open it to others.",
            )  # fmt: skip
        if self.around.options.operator is None:
            auth.check_host(connection)
        client = connection.client
        return Visitor("operator", client.host if client else "local")
