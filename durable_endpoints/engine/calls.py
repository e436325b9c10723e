"""How a call becomes a step's: wraps functions, finds the scope around the caller."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

from durable_endpoints.engine.attempts import run_attempts
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import StepSpec, run_step, run_sync_step
from durable_endpoints.engine.streams import run_stream
from durable_endpoints.redact import is_secret


def scope_or_none() -> Scope | None:
    """Return the scope of a caller that belongs to a run and is not inside a step."""
    scope = SCOPE.get()
    return None if scope is None or scope.inert else scope


def takes_secrets(function: Callable[..., Any]) -> bool:
    """Say whether a parameter's name says that it holds a secret."""
    try:
        return any(map(is_secret, inspect.signature(function).parameters))
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def wrap(function: Callable[..., Any], spec: StepSpec) -> Any:
    """Return a function that runs as a step inside a run, and as itself elsewhere."""
    if inspect.isasyncgenfunction(function):
        resume = spec.on_interrupt == "resume"

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            scope = SCOPE.get()
            if scope is None or scope.inert:
                return function(*args, **{**kwargs, "recorded": []} if resume else kwargs)
            return run_stream(scope, scope.next_call(), spec, function, args, kwargs)

    elif inspect.iscoroutinefunction(function):
        drive = run_attempts if spec.staged else run_step

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            scope = SCOPE.get()
            if scope is None or scope.inert:
                return function(*args, **kwargs)
            return drive(scope, scope.next_call(), spec, function, args, kwargs)

        _mark_coroutine_function(call)
    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            scope = SCOPE.get()
            if scope is None or scope.inert:
                return function(*args, **kwargs)
            return run_sync_step(scope, scope.next_call(), spec, function, args, kwargs)

    call.durable_step = spec  # type: ignore[attr-defined]
    return call


def _mark_coroutine_function(function: Callable[..., Any]) -> None:
    """Let frameworks see that calling it returns an awaitable."""
    if hasattr(inspect, "markcoroutinefunction"):  # Python 3.12
        inspect.markcoroutinefunction(function)
    else:
        import asyncio.coroutines

        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001


def as_awaitable(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a coroutine function; a plain one will run in a worker thread."""
    if inspect.iscoroutinefunction(function):
        return function

    async def call(*args: Any, **kwargs: Any) -> Any:
        work = functools.partial(function, *args, **kwargs)
        result = await anyio.to_thread.run_sync(work)
        return await result if inspect.isawaitable(result) else result

    return call
