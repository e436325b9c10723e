"""`@durable`: marks an endpoint, and promotes the request around it to a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol, TypeVar, overload

import anyio.to_thread

from durable_endpoints.engine.labels import label
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.limits import IDEMPOTENCY_KEY_CHARS_MAX

F = TypeVar("F", bound=Callable[..., Any])
POLICIES: Final = ("attach", "queue", "replace", "reject")


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What an endpoint says of itself. A run goes on only under the version it began with."""

    name: str
    version: str = "1"
    concurrency_key: str | None = None
    on_conflict: str = "attach"
    timeout_s: float | None = None
    labels: tuple[tuple[str, str], ...] = ()


class Admission(Protocol):
    """The request around an endpoint, able to become a run."""

    async def promote(self, spec: EndpointSpec, *, concurrency_key: str | None = None) -> None:
        """Make the request a run, unless it is one already."""
        ...


ADMISSION: ContextVar[Admission | None] = ContextVar("durable_endpoints_admission", default=None)
ENDPOINTS: dict[str, tuple[EndpointSpec, Callable[..., Any]]] = {}


@overload
def durable(function: F, /) -> F: ...
@overload
def durable(
    *,
    version: str = "1",
    concurrency_key: str | None = None,
    on_conflict: str = "attach",
    timeout: float | timedelta | None = None,
    labels: Mapping[str, str] | None = None,
) -> Callable[[F], F]: ...
def durable(
    function: Callable[..., Any] | None = None,
    /,
    *,
    version: str = "1",
    concurrency_key: str | None = None,
    on_conflict: str = "attach",
    timeout: float | timedelta | None = None,
    labels: Mapping[str, str] | None = None,
) -> Any:
    """Make each request to an endpoint a run. Goes below the route decorator.

    Works on `async def`, `def` (run in a worker thread, as FastAPI does) and generators. Raise
    `version` when you change the order of a handler's steps: runs of another version are parked
    instead of being replayed by code that they do not fit. Outside a request the endpoint is the
    plain function.

    `concurrency_key` is a template over the endpoint's parameters, such as `"{thread}"`: of one
    route, principal and key, one run is at work at a time. What a second request gets is up to
    `on_conflict`: `attach` (the first one's response), `queue` (its turn after the others),
    `replace` (the first is cancelled), `reject` (409). `timeout`, seconds or a timedelta, fails
    a run that takes longer, its waits included. `labels` are put on the run, to find it by:
    templates like the key, such as `{"tenant": "{tenant}"}`.
    """
    if on_conflict not in POLICIES:
        raise ValueError(f"on_conflict={on_conflict!r}: choose one of {', '.join(POLICIES)}")
    timeout_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout

    def decorate(function: Callable[..., Any]) -> Any:
        name = f"{function.__module__}:{function.__qualname__}"
        spec = EndpointSpec(
            name, version, concurrency_key, on_conflict, timeout_s, tuple((labels or {}).items())
        )
        wrapped = _wrap(function, spec)
        ENDPOINTS[name] = (spec, wrapped)
        wrapped.durable_endpoint = spec
        return wrapped

    return decorate if function is None else decorate(function)


async def _admit(
    spec: EndpointSpec, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> None:
    admission = ADMISSION.get()
    key: str | None = None
    given: Mapping[str, Any] = {}
    if spec.concurrency_key is not None or spec.labels:
        bound = inspect.signature(function).bind_partial(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
    if admission is not None:
        if spec.concurrency_key is not None:
            key = spec.concurrency_key.format_map(given)
            if len(key) > IDEMPOTENCY_KEY_CHARS_MAX:
                raise ValueError(
                    f"{spec.name}: a concurrency key has at most {IDEMPOTENCY_KEY_CHARS_MAX} "
                    "characters"
                )
        await admission.promote(spec, concurrency_key=key)
    scope = SCOPE.get()
    if spec.labels and scope is not None and not scope.inert:
        label(scope, {name: value.format_map(given) for name, value in spec.labels})


def _wrap(function: Callable[..., Any], spec: EndpointSpec) -> Any:
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            await _admit(spec, function, args, kwargs)
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

        return stream
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            await _admit(spec, function, args, kwargs)
            return await function(*args, **kwargs)

        return call
    if inspect.isgeneratorfunction(function):

        async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            await _admit(spec, function, args, kwargs)
            items = function(*args, **kwargs)
            end = object()
            while (item := await anyio.to_thread.run_sync(next, items, end)) is not end:
                yield item

        return _as_async(iterate, function)

    async def work(*args: Any, **kwargs: Any) -> Any:
        await _admit(spec, function, args, kwargs)
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs))

    return _as_async(work, function)


def _as_async(wrapper: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Give an async wrapper the signature of a plain function, but not its `__wrapped__`.

    FastAPI looks behind `__wrapped__` to see whether to await: it would see the plain function.
    """
    functools.update_wrapper(wrapper, function)
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:
        signature = inspect.signature(function)
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__annotations__ = {
        parameter.name: parameter.annotation
        for parameter in signature.parameters.values()
        if parameter.annotation is not parameter.empty
    }
    if signature.return_annotation is not signature.empty:
        wrapper.__annotations__["return"] = signature.return_annotation
    return wrapper
