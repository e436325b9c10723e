"""`DurableMiddleware`: the one thing to add to an app."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from starlette._utils import get_route_path

from durable_endpoints import detector
from durable_endpoints.asgi.cursor import parse
from durable_endpoints.asgi.exchange import Exchange
from durable_endpoints.asgi.host import HeadersHook, Host, OperatorHook, Options, PrincipalHook
from durable_endpoints.asgi.request import header
from durable_endpoints.asgi.routes import ControlRoutes
from durable_endpoints.engine.attempts import inside_plain_step
from durable_endpoints.engine.engine import Engine
from durable_endpoints.errors import StoreError
from durable_endpoints.limits import SUSPEND_GRACE_S
from durable_endpoints.stores.open import open_store
from durable_endpoints.telemetry import observer

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from starlette.types import ASGIApp, Receive, Scope, Send

    from durable_endpoints.console.auth import AuthHook
    from durable_endpoints.llm.usage import Price
    from durable_endpoints.stores.protocol import Store

    Prices = Mapping[str, Price | tuple[float, float] | tuple[float, float, float]]

_NEVER: Final = frozenset({"HEAD", "OPTIONS"})


class DurableMiddleware:
    """Makes the requests to marked routes durable runs; everything else passes untouched.

    `store` is an address (`sqlite:///path.db`, `memory:`) or a `Store`. `routes` are path
    patterns (`/chat`, `/agents/*`) of unchanged handlers to make durable. `prefix` is where our
    own routes answer. `principal` says whose a request is (`None`: a run id is a capability);
    `operator` says who may list all runs (default: loopback without a proxy). `mode="strict"`
    makes every step wait for its commit. `restore_headers(principal, request)` gives a recovered
    request its credentials again, which are never stored. `signing_secrets` (`whsec_…`, the
    newest first) sign approval links; without them one is kept beside a SQLite database.
    `console_auth(connection)` says who may see (`"viewer"`) and steer (`"operator"`) the console.
    `development` warns of requests that change something (POST and the like) from plain steps,
    which should be effects; hosts given are allowed beside those of model providers.
    `telemetry` makes OpenTelemetry spans of runs, steps and waits, by the global provider or by
    the one given.
    `prices` of models' tokens, `{"gpt-*": (2.5, 10.0)}` for a million (input, output), let the
    console say what runs cost.
    `suspend_after` is how long, in seconds, a run that does nothing but wait stays in memory.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: str | Store = "sqlite:///durable.db",
        routes: Sequence[str] = (),
        prefix: str = "/_durable",
        principal: PrincipalHook | None = None,
        operator: OperatorHook | None = None,
        mode: Literal["optimistic", "strict"] = "optimistic",
        restore_headers: HeadersHook | None = None,
        signing_secrets: Sequence[str] = (),
        suspend_after: float = SUSPEND_GRACE_S,
        console_auth: AuthHook | None = None,
        development: bool | Sequence[str] = False,
        telemetry: bool | TracerProvider = False,
        prices: Prices | None = None,
        engine: Engine | None = None,
    ) -> None:
        if not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError(f"prefix={prefix!r}: begin it with a slash and end it without one")
        if mode not in ("optimistic", "strict"):
            raise ValueError(f'mode={mode!r}: choose "optimistic" or "strict"')
        self.app = app
        self.engine = engine or Engine(
            open_store(store), strict=mode == "strict", suspend_grace_s=suspend_after
        )
        if telemetry is not False:
            self.engine.observer = observer(None if telemetry is True else telemetry)
        options = Options(
            prefix, tuple(routes), principal, operator, restore_headers, tuple(signing_secrets),
            _prices(prices),
        )  # fmt: skip
        self._prefix = prefix
        if development:
            hosts = () if development is True else development
            detector.install((*detector.LLM_HOSTS, *hosts), inside_plain_step=inside_plain_step)
        self._host = Host(app, self.engine, options)
        self._control = ControlRoutes(self._host, console_auth)

    @property
    def host(self) -> Host:
        """What its requests share."""
        return self._host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = get_route_path(scope)
        if path.startswith(self._prefix) and path[len(self._prefix) :][:1] in ("", "/"):
            await self._control(scope, receive, send)
            return
        if scope["method"] in _NEVER:
            await self.app(scope, receive, send)
            return
        if not self._host.template and "app" in scope:
            self._host.template = {"app": scope["app"]}
        cursor = parse(header(scope, b"last-event-id"))
        if cursor is not None:  # stock clients send the first request again, with our id
            await self._control.resend(cursor, scope, receive, send)
            return
        exchange = Exchange(self._host, scope, receive, send)
        await exchange.handle(self.app, self._host.pattern_of(path))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open before the app starts, recover once it has started, drain before it stops."""
        host = self._host

        async def inner_receive() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await host.open()
            elif message["type"] == "lifespan.shutdown":
                await host.engine.drain(0)
            return message

        async def inner_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete":
                host.template = {"app": scope.get("app"), "state": scope.get("state", {})}
                host.start_recovery()
            elif message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await host.close()
            await send(message)

        try:
            await self.app(scope, inner_receive, inner_send)
        except StoreError as error:
            if host.engine.is_open:
                raise
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        finally:
            if host.engine.is_open and host.engine.draining:
                await host.close()


def _prices(given: Prices | None) -> Mapping[str, Price]:
    if not given:
        return {}
    from durable_endpoints.llm.usage import prices_of  # nobody else here needs it

    return prices_of(given)
