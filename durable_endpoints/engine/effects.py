"""`@effect`: a step that must not act on anything that a crash can undo (I3)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar, overload
from uuid import uuid4

from durable_endpoints.codec import Codec, codec_of
from durable_endpoints.engine.attempts import KEY, run_attempts
from durable_endpoints.engine.calls import as_awaitable, scope_or_none, takes_secrets, wrap
from durable_endpoints.engine.steps import StepSpec
from durable_endpoints.quotas import RateLimit
from durable_endpoints.retry import Retry

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class EffectDecorator:
    """`@effect`, `@effect(...)` and `effect.run`."""

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        rate_limit: RateLimit | None = None,
        compensate: Callable[..., Awaitable[Any]] | None = None,
        on_ambiguous: str = "retry",
        verify: Callable[..., Awaitable[Any]] | None = None,
    ) -> Callable[[F], F]: ...
    def __call__(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        rate_limit: RateLimit | None = None,
        compensate: Callable[..., Awaitable[Any]] | None = None,
        on_ambiguous: str = "retry",
        verify: Callable[..., Awaitable[Any]] | None = None,
    ) -> Any:
        """Make a coroutine function an effect.

        It begins only when its own intent, and all that came before it in the run, is durable;
        `idempotency_key()` inside it is the same for every attempt. If the process ends before
        its result is durable, `on_ambiguous` decides: `retry` (with the same key), `ask` (a
        person), `fail` (`EffectAmbiguous` is raised: at most once); or `verify`, which is called
        with the key and the arguments, and returns the result, or raises LookupError if the
        receiver has never heard of the key. `retry`, `rate_limit`, `timeout` (seconds, of one
        attempt) and `compensate` (called with the same arguments if the run fails later) are
        those of `step`.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            if not inspect.iscoroutinefunction(function):
                raise TypeError(
                    f"{function!r}: an effect is a coroutine function (async def); for a plain "
                    "one use effect.run(name, function, …)"
                )
            called = name or function.__name__
            spec = StepSpec(
                called, codec_of(f"effect {called}", function), timeout,
                secret=takes_secrets(function), retry=retry, rate_limit=rate_limit,
                compensate=compensate, effect=True, on_ambiguous=on_ambiguous, verify=verify,
            )  # fmt: skip
            return wrap(function, spec)

        return decorate if function is None else decorate(function)

    @overload
    @staticmethod
    def run(
        name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...
    @overload
    @staticmethod
    def run(
        name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]: ...
    @staticmethod
    def run(
        name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Awaitable[Any]:
        """Run any function as an effect of this name; a plain one runs in a worker thread."""
        scope = scope_or_none()
        call = as_awaitable(function)
        if scope is None:
            return call(*args, **kwargs)
        spec = StepSpec(
            name, Codec(f"effect {name}"), secret=takes_secrets(function), effect=True
        )  # fmt: skip
        return run_attempts(scope, scope.next_call(), spec, call, args, kwargs)


effect = EffectDecorator()


def idempotency_key() -> str:
    """Return the key of the effect, or of the step with retries, that the caller is inside of.

    The same for every attempt, on every node, after every restart. Elsewhere: a new one.
    """
    return KEY.get() or uuid4().hex
