"""The transport that makes HTTP requests of a run durable, with whatever client sends them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from weakref import WeakKeyDictionary

import httpx

from durable_endpoints import failures
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.errors import NotDurable
from durable_endpoints.llm.answers import name_of
from durable_endpoints.llm.effects import respond
from durable_endpoints.llm.exchange import Exchange
from durable_endpoints.llm.library import LIBRARIES, BaseTransport, library_of
from durable_endpoints.llm.policy import Policy
from durable_endpoints.llm.rules import DefaultRule, Rule
from durable_endpoints.quotas import RateLimit
from durable_endpoints.retry import Retry

# What a run's calls failed with in the end, dumped, by task and name.
Failed: TypeAlias = dict[tuple[str, str], bytes]
# The providers' own libraries say in it which retry of theirs a request is.
_RETRY_COUNT: Final = "x-stainless-retry-count"
DEFAULT_RETRY: Final = Retry()


class DurableTransport(BaseTransport):
    """Sends requests through `inner`; inside a durable run each one is a step, recorded.

    For `AsyncClient` of httpx and of httpx2. Outside a run, and inside a step, it does nothing
    but pass on. Inside a run:

    - Requests to models and safe requests are steps: their answers are recorded as they flow and
      never asked for twice. All others are effects: they begin when all before them is durable,
      have an `Idempotency-Key` that is the same for every attempt, and their answer, at most
      1 MiB, is given on when it is whole. See `DefaultRule`; `llm_hosts` adds to its hosts;
      `rule`, a function of the request, returns "step", "effect", "plain" (not recorded at all:
      made again at every replay) or None (as the default rule says).
    - `on_interrupt` says what becomes of an answer that a crash cut, as for stream steps. OpenAI's
      background responses go on with "auto" where they broke off.
    - `on_ambiguous` says what becomes of an effect that a crash cut: "retry", "ask", "fail".
    - `retry` is for steps: attempts and waits are journalled, `Retry-After` is kept. It takes the
      place of the client library's own retries, which see the outcome only; None leaves them on.
    - `rate_limit` is for steps, over all runs of the process; 429 and `Retry-After` feed it.

    Of headers and addresses nothing is recorded that looks like a secret.

    Raises, at requests: NotDurable in a run, but not on its event loop; what `inner` raises.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        llm_hosts: Iterable[str] = (),
        rule: Rule | None = None,
        on_interrupt: str = "auto",
        on_ambiguous: str = "retry",
        retry: Retry | None = DEFAULT_RETRY,
        rate_limit: RateLimit | None = None,
    ) -> None:
        self._inner: httpx.AsyncBaseTransport = inner or LIBRARIES[0].AsyncHTTPTransport()
        default = DefaultRule(llm_hosts)
        chosen: Rule = (
            default if rule is None else lambda request: rule(request) or default(request)
        )
        self._policy = Policy(chosen, on_interrupt, on_ambiguous, retry, rate_limit)
        self._failed: WeakKeyDictionary[LiveRun, Failed] = WeakKeyDictionary()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, or return its recorded response."""
        scope = SCOPE.get()
        if scope is None or scope.inert:
            return await self._inner.handle_async_request(request)
        treatment = self._policy.rule(request)
        if treatment == "plain":
            return await self._inner.handle_async_request(request)
        if threading.get_ident() != scope.run.log.thread_id:
            raise NotDurable(
                f"{name_of(request)}: in a run, make requests on the server's event loop, with an "
                "async client; from another thread, make them inside a step"
            )
        send = self._inner.handle_async_request
        if treatment == "effect":
            return await respond(scope, request, send, self._policy)
        return await self._step(scope, request)

    async def _step(self, scope: Scope, request: httpx.Request) -> httpx.Response:
        """Make a step of it; the client library's own retries of it are answered from memory."""
        failed = self._failed.setdefault(scope.run, {})
        name = name_of(request)
        known = failed.pop((scope.path, name), None)
        if known is not None and request.headers.get(_RETRY_COUNT, "0") != "0":
            failed[scope.path, name] = known
            raise failures.load(name, known)
        send = self._inner.handle_async_request
        try:
            return await Exchange(scope, request, send, self._policy).response()
        except library_of(request).TransportError as failure:
            if self._policy.retry is not None:
                failed[scope.path, name] = failures.dump(failure)
            raise

    async def __aenter__(self) -> Self:
        """Open the inner transport."""
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:  # fmt: skip
        """Close the inner transport."""
        await self._inner.__aexit__(kind, value, traceback)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()
