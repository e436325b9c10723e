"""A pytest plugin that makes every route of every app under test durable.

`-p durable_plugin --durable=off|outside|inside --outcomes=FILE`. `outside` puts
`DurableMiddleware(routes=["*"])` around each app that a test hands to `TestClient` or to an
`ASGITransport`; `inside` adds it to the app's own middlewares, outermost, as an app does that
calls `add_middleware`. What the middleware is documented to add (two response headers, the ids of
events) is taken off again in front of the client: a test that knows nothing of it must notice
nothing of it. The outcome of every test goes to FILE.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import sniffio

from durable_endpoints import DurableMiddleware
from durable_endpoints.ids import RUN_ID

OWN_ID = re.compile(rb"(?m)^id: " + RUN_ID.pattern.encode() + rb":\d+-[0-9a-f]{8}\r?\n")
EVERY_ROUTE: dict[str, Any] = {"store": "memory:", "routes": ["*"]}
Message = MutableMapping[str, Any]
Headers = Iterable[tuple[bytes, bytes]]


def on_asyncio() -> bool:
    """Whether this is asyncio: the middleware is for nothing else."""
    return sniffio.current_async_library() == "asyncio"


class Inside(DurableMiddleware):
    """The middleware, where the app runs on asyncio."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (super().__call__ if on_asyncio() else self.app)(scope, receive, send)


class Stripped:
    """Stands between a client and the durable app, and takes off what the middleware added."""

    def __init__(self, app: Any, inner: Any, counts: dict[str, int]) -> None:
        self.app = app
        self.inner = inner
        self.counts = counts

    def __getattr__(self, name: str) -> Any:  # tests reach for `client.app.state` and the like
        return getattr(self.inner, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not on_asyncio():
            await self.inner(scope, receive, send)
            return

        async def strip(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self.kept(message.get("headers", ()))}
            elif message["type"] == "http.response.body" and message.get("body"):
                message = {**message, "body": OWN_ID.sub(b"", message["body"])}
            await send(message)

        await self.app(scope, receive, strip if scope["type"] == "http" else send)

    def kept(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers without our two."""
        kept = []
        for name, value in headers:
            if name == b"durable-run-id":
                self.counts["runs"] += 1
            elif name != b"link" or b'rel="durable-stream"' not in value:
                kept.append((name, value))
        return kept


class Plugin:
    """Puts the middleware where it belongs, and writes down what became of the tests."""

    def __init__(self, mode: str, outcomes: Path) -> None:
        self.mode = mode
        self.outcomes = outcomes
        self.found: dict[str, dict[str, str]] = {}
        self.counts = {"runs": 0}

    def around(self, app: Any) -> Stripped:
        """Return the durable app."""
        if self.mode == "outside":
            return Stripped(DurableMiddleware(app, **EVERY_ROUTE), app, self.counts)
        if hasattr(app, "build_middleware_stack") and not hasattr(app, "made_durable"):
            app.made_durable = True
            app.build_middleware_stack = _with_ours(app, app.build_middleware_stack)
        return Stripped(app, app, self.counts)

    def install(self) -> None:
        """Patch the clients with which apps are tested."""
        import starlette.testclient

        client = starlette.testclient.TestClient
        begin = client.__init__

        def init(itself: Any, *args: Any, **kwargs: Any) -> None:
            begin(itself, *args, **kwargs)
            if itself.async_backend["backend"] == "asyncio":
                itself.app = itself._transport.app = self.around(itself.app)

        client.__init__ = init  # type: ignore[method-assign, assignment]
        for library in ("httpx", "httpx2"):
            transport = __import__(library).ASGITransport
            transport.__init__ = self._transport_init(transport.__init__)

    def _transport_init(self, begin: Callable[..., None]) -> Callable[..., None]:
        def init(itself: Any, *args: Any, **kwargs: Any) -> None:
            begin(itself, *args, **kwargs)
            itself.app = self.around(itself.app)

        return init

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the first phase of a test that did not pass, or that all did."""
        before = self.found.get(report.nodeid)
        if before is not None and before["outcome"] != "passed":
            return
        outcome = f"x{report.outcome}" if hasattr(report, "wasxfail") else report.outcome
        self.found[report.nodeid] = {
            "outcome": outcome,
            "text": "" if report.passed else str(report.longrepr)[-3000:],
        }

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what could not be collected."""
        if report.failed:
            text = str(report.longrepr)[-3000:]
            self.found[report.nodeid] = {"outcome": "not collected", "text": text}

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Write the outcomes."""
        self.outcomes.write_text(json.dumps({"tests": self.found, **self.counts}))


def _with_ours(app: Any, build: Callable[[], Any]) -> Callable[[], Any]:
    def build_with_ours() -> Any:
        from starlette.middleware import Middleware

        app.user_middleware.insert(0, Middleware(Inside, **EVERY_ROUTE))
        try:
            return build()
        finally:
            del app.user_middleware[0]

    return build_with_ours


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our two options."""
    parser.addoption("--durable", choices=["off", "outside", "inside"], default="off")
    parser.addoption("--outcomes", type=Path, required=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    plugin = Plugin(config.getoption("--durable"), config.getoption("--outcomes"))
    config.pluginmanager.register(plugin, "durable-plugin")
    if sys.version_info < (3, 12):
        # Threads that parse at the same time upset each other there (CPython issue 106905): an
        # exception logged beside the test would break pytest's own parsing.
        traceback._extract_caret_anchors_from_line_segment = (  # type: ignore[attr-defined]
            lambda *_: None
        )
    if plugin.mode != "off":
        plugin.install()
