"""What all exchanges of one middleware share: the engine, its life, and who may do what."""

from __future__ import annotations

import asyncio
import fnmatch
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson
from starlette._utils import get_route_path
from starlette.requests import HTTPConnection

from durable_endpoints.asgi.drain import watch
from durable_endpoints.asgi.problems import Problem, not_found
from durable_endpoints.asgi.replayed import ReplayedExchange
from durable_endpoints.asgi.request import KIND, header, rebuild
from durable_endpoints.asgi.signing import Signing
from durable_endpoints.asgi.tail import hide_links, quiet_aborts
from durable_endpoints.engine import functions
from durable_endpoints.engine.endpoints import EndpointSpec
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.recovery import Recovery
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import RunNotFound, StoreError
from durable_endpoints.journal import Journal
from durable_endpoints.records import Entry
from durable_endpoints.stores.protocol import PATIENCE_S

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

    from durable_endpoints.llm.usage import Price

logger = logging.getLogger("durable_endpoints")

PrincipalHook = Callable[[HTTPConnection], str | Awaitable[str | None] | None]
OperatorHook = Callable[[HTTPConnection], bool | Awaitable[bool]]
HeadersHook = Callable[[str | None, dict[str, Any]], Iterable[tuple[str, str]]]
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_FORWARDED: Final = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


@dataclass(frozen=True, slots=True)
class Options:
    """What the middleware was given."""

    prefix: str
    routes: Sequence[str]
    principal: PrincipalHook | None
    operator: OperatorHook | None
    restore_headers: HeadersHook | None
    signing_secrets: Sequence[str] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)  # of models' tokens


def _is_own_page(scope: Scope) -> bool:
    """Say that no foreign web page is behind a request: a browser is on loopback, too."""
    host = header(scope, b"host") or ""
    name = urlsplit(f"//{host}").hostname
    if name not in _LOCAL_NAMES:  # a foreign name that was made to point here
        return False
    if header(scope, b"sec-fetch-site") not in (None, "same-origin", "none"):
        return False
    origin = header(scope, b"origin")
    return origin is None or urlsplit(origin).netloc == host


class Host:
    """One middleware's engine and its surroundings."""

    def __init__(self, app: ASGIApp, engine: Engine, options: Options) -> None:
        self.app = app
        self.engine = engine
        self.options = options
        self.template: dict[str, Any] = {}
        self.signing = Signing(options.signing_secrets, engine.store, engine.clock, options.prefix)
        engine.waking.sign_path = self.signing.path
        self._opening: asyncio.Lock | None = None
        self._refused: StoreError | None = None
        self._recovering = False
        engine.drivers[KIND] = self._drive
        engine.drivers[functions.KIND] = lambda run, started, journal: functions.recover(
            engine, run, started, journal
        )

    # --- life

    async def ensure_open(self) -> None:
        """Open the engine if no lifespan did, and begin to recover.

        Raises: Problem 503 if the store refused.
        """
        if self._recovering:
            return
        try:
            await self.open()
        except StoreError as error:
            raise Problem(503, "store-unavailable", "the journal cannot be opened") from error
        self.start_recovery()

    async def open(self) -> None:
        """Open the engine.

        Raises: StoreRefused, whose message says what to do.
        """
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._refused is not None:
                raise self._refused  # a failed sync must not be tried again (I9)
            if not self.engine.is_open:
                try:
                    await self.engine.open()
                except StoreError as error:
                    logger.exception("the store cannot be opened")
                    self._refused = error
                    raise
                watch(self.engine)
                logging.getLogger("uvicorn.error").addFilter(quiet_aborts)
                logging.getLogger("uvicorn.access").addFilter(hide_links)

    def start_recovery(self) -> None:
        """Go on with what an earlier process left."""
        if not self._recovering:
            self._recovering = True
            Recovery(self.engine).start()

    async def close(self) -> None:
        """Leave in good order."""
        self._recovering = False
        self._opening = None
        await self.engine.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the requests, outside of any run."""
        context = self.clean_context()
        context.run(PATIENCE_S.set, None)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self.engine.tasks.add(task)
        task.add_done_callback(self.engine.tasks.discard)
        return task

    @staticmethod
    def clean_context() -> Context:
        """Return a context that belongs to no run."""
        return Context()

    # --- who and what

    def prefix_of(self, scope: Scope) -> str:
        """Return the path under which a client of this request reaches our own routes."""
        root: str = scope.get("root_path", "")
        return root + self.options.prefix

    @staticmethod
    def wants_control(scope: Scope) -> bool:
        """Say whether the client asked for control events."""
        if header(scope, b"durable-events") == "1":
            return True
        return b"durable_events=1" in scope.get("query_string", b"").split(b"&")

    async def principal_of(self, scope: Scope) -> str | None:
        """Return whose request it is (I18)."""
        hook = self.options.principal
        if hook is None:
            return None
        found = hook(HTTPConnection(scope))
        return await found if inspect.isawaitable(found) else found

    async def is_operator(self, scope: Scope) -> bool:
        """Say whether the client may see many runs: loopback only, unless a hook decides."""
        hook = self.options.operator
        if hook is not None:
            allowed = hook(HTTPConnection(scope))
            return bool(await allowed if inspect.isawaitable(allowed) else allowed)
        client = scope.get("client")
        # Behind a proxy on this machine every client looks local.
        proxied = any(header(scope, name) is not None for name in _FORWARDED)
        local = client is not None and client[0] in _LOOPBACK and not proxied
        return local and _is_own_page(scope)

    async def observe(self, scope: Scope, run_id: str) -> LiveRun:
        """Return the run that a request asks for.

        Raises: Problem 404; RunDeleted.
        """
        await self.ensure_open()
        try:
            return await self.engine.observe(run_id, await self.principal_of(scope))
        except RunNotFound as error:
            if type(error) is not RunNotFound:
                raise
        if self.options.operator is not None and await self.is_operator(scope):
            record = await self.engine.store.get(run_id)
            if record is not None:
                return await self.engine.observe(run_id, record.principal)
        raise not_found()

    def pattern_of(self, path: str) -> EndpointSpec | None:
        """Return the path pattern that makes an unchanged route durable."""
        for pattern in self.options.routes:
            if fnmatch.fnmatchcase(path, pattern):
                return EndpointSpec(f"routes {pattern}")
        return None

    # --- recovery

    async def _drive(self, run: LiveRun, started: Entry, journal: Journal) -> None:
        """Drive a recovered request on."""
        meta = orjson.loads(started.args)
        restore = self.options.restore_headers
        extra = restore(run.record.principal, meta) if restore is not None else ()
        scope = rebuild(meta, self.template, extra)
        exchange = ReplayedExchange(
            run, journal, scope, started.payload, lambda: self.engine.leaving,
            self.engine.conflicts.take_turn,
        )  # fmt: skip
        pattern = self.pattern_of(get_route_path(scope)) if meta["pattern"] else None
        run.task = self.spawn(exchange.handle(self.app, pattern))
        await asyncio.wait([run.task])
