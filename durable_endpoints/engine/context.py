"""What handlers call: `step`, `current_run`, `emit`, `now`, `random`, `uuid7`.

Outside a run every one of them is the plain call, so that handlers stay testable.
"""

from __future__ import annotations

import inspect
import random as _random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, ParamSpec, TypeVar, overload
from uuid import UUID

import orjson

from durable_endpoints.codec import Codec, codec_of, dumps
from durable_endpoints.engine.calls import as_awaitable, scope_or_none, takes_secrets, wrap
from durable_endpoints.engine.children import Child, spawn
from durable_endpoints.engine.labels import label
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import StepSpec, claim, on_loop, run_step
from durable_endpoints.engine.streams import run_stream
from durable_endpoints.errors import NotDurable, PayloadTooLarge
from durable_endpoints.ids import new_uuid7
from durable_endpoints.labels import parsed
from durable_endpoints.limits import EVENT_BYTES_MAX
from durable_endpoints.quotas import RateLimit
from durable_endpoints.records import Kind
from durable_endpoints.retry import Retry

# As WHATWG HTML, section 9.2.6, has it: not what `str.splitlines` takes for one.
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class StepDecorator:
    """`@step`, `@step(...)`, `step.run`, `step.stream` and `step.options`."""

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
        on_interrupt: str = "auto",
        retry: Retry | None = None,
        rate_limit: RateLimit | None = None,
        compensate: Callable[..., Awaitable[Any]] | None = None,
    ) -> Callable[[F], F]: ...
    def __call__(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        timeout: float | None = None,
        on_interrupt: str = "auto",
        retry: Retry | None = None,
        rate_limit: RateLimit | None = None,
        compensate: Callable[..., Awaitable[Any]] | None = None,
    ) -> Any:
        """Make a function a step: its result is recorded and never made twice.

        Works on coroutine functions, async generator functions (every item is recorded as it
        flows) and plain functions. `name` is the step's name in the journal, the function's own
        if not given, at most 200 characters; `timeout` is in seconds, for coroutine functions;
        `on_interrupt`, for generators, says what happens after a crash in the middle: `auto`,
        `restart`, `resume` (the function gets the keyword `recorded`), `finalize`, `fail`, `hold`.
        `retry` says how failures are followed by further attempts; `rate_limit` how many may begin;
        `compensate` is called with the step's arguments, as an effect, if the run fails later.

        Raises, at the call: NotSerializable or PayloadTooLarge if the result cannot be recorded.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            spec = _spec(function, name, timeout, on_interrupt)
            policies = {"retry": retry, "rate_limit": rate_limit, "compensate": compensate}
            return wrap(function, _with_policies(function, spec, policies))

        return decorate if function is None else decorate(function)

    @staticmethod
    def options(function: F, /, **changes: Any) -> F:
        """Return a copy of a step with other options (`name`, `timeout`, `on_interrupt`)."""
        spec: StepSpec | None = getattr(function, "durable_step", None)
        if spec is None:
            raise TypeError(f"{function!r} is not a step: decorate it with @step first")
        if "timeout" in changes:
            changes["timeout_s"] = changes.pop("timeout")
        inner = inspect.unwrap(function)
        wrapped: F = wrap(inner, _with_policies(inner, spec, changes))
        return wrapped

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
        """Run any function as a step of this name; a plain one runs in a worker thread."""
        scope = scope_or_none()
        call = as_awaitable(function)
        if scope is None:
            return call(*args, **kwargs)
        secret = takes_secrets(function)
        spec = StepSpec(name, Codec(f"step {name}"), secret=secret)
        return run_step(scope, scope.next_call(), spec, call, args, kwargs)

    @staticmethod
    def stream(
        name: str, function: Callable[P, AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[R]:
        """Iterate over any async generator function as a stream step of this name."""
        scope = scope_or_none()
        if scope is None:
            return function(*args, **kwargs)
        secret = takes_secrets(function)
        spec = StepSpec(name, Codec(f"step {name}"), secret=secret)
        return run_stream(scope, scope.next_call(), spec, function, args, kwargs)


step = StepDecorator()


def _spec(
    function: Callable[..., Any], name: str | None, timeout: float | None, on_interrupt: str
) -> StepSpec:
    called = name or str(getattr(function, "__name__", type(function).__name__))
    items = inspect.isasyncgenfunction(function)
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"step {called}: a stream step is an async generator (async def … yield)")
    if timeout is not None and not inspect.iscoroutinefunction(function):
        raise TypeError(f"step {called}: timeout= needs a coroutine function (async def)")
    if on_interrupt != "auto" and not items:
        raise TypeError(f"step {called}: on_interrupt= is for async generators")
    codec = codec_of(f"step {called}", function, items=items)
    return StepSpec(called, codec, timeout, on_interrupt, takes_secrets(function))


def _with_policies(
    function: Callable[..., Any], spec: StepSpec, policies: Mapping[str, Any]
) -> StepSpec:
    changed = replace(spec, **policies)
    if changed.staged and not inspect.iscoroutinefunction(function):
        allowed = inspect.isasyncgenfunction(function) and not changed.compensate
        if not allowed:
            raise TypeError(
                f"step {spec.name}: retry=, rate_limit= and compensate= need a coroutine function "
                "(async def); an async generator takes retry= and rate_limit="
            )
    return changed


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run around the caller. `attempt` counts from 1, anew whenever the run got further."""

    id: str
    attempt: int
    replaying: bool

    @property
    def labels(self) -> Mapping[str, str]:
        """The run's labels, as they are now."""
        scope = SCOPE.get()
        if scope is None or scope.run.id != self.id:
            raise NotDurable("the labels of a run are for its own code: another run is around")
        known = scope.run.life.labelling
        return parsed(scope.run.record.labels if known is None else known.now)

    def label(self, **labels: str | float | bool | None) -> None:
        """Put labels on the run, to find it by: at most 16, texts of at most 200 characters.

        They are durable with the run's next commit, and nothing secret: operators see them. What
        was there stays; None takes a label away. Numbers and booleans become text.

        Raises: ValueError, TypeError for what cannot be a label; NotDurable inside a step.
        """
        scope = scope_or_none()
        if scope is None or scope.run.id != self.id:
            raise NotDurable("label is for the handler of the run: not inside a step")
        on_loop(scope.run, label, scope, labels)

    async def spawn(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Child:
        """Begin a `@durable` function as a child run; `await` what is returned for its result.

        The child goes on by itself, survives crashes by itself, and is cancelled with this run.
        Arguments are JSON values.

        Raises: NotDurable inside a step.
        """
        scope = scope_or_none()
        if scope is None or scope.run.id != self.id:
            raise NotDurable("spawn is for the handler of the run: not inside a step")
        return await spawn(scope, function, args, kwargs)


def current_run() -> CurrentRun:
    """Return the run that the caller is part of, inside steps too.

    Raises: NotDurable if there is none.
    """
    scope = SCOPE.get()
    if scope is None:
        raise NotDurable("there is no run here: mark the endpoint with @durable")
    run = scope.run
    return CurrentRun(run.id, run.record.attempts + 1, run.replay is not None)


def emit(data: Any, *, event: str | None = None) -> None:
    """Send an event to the run's observers, beside the response (an SSE event, at most 256 KiB).

    `data` is text, or a JSON value. Does nothing outside a run.

    Raises: NotSerializable, PayloadTooLarge.
    """
    scope = scope_or_none()
    if scope is None:
        return
    if event is not None and _LINE_END.search(event):
        raise ValueError(f"emit: the event's name has a line end: {event!r}")
    text = data if isinstance(data, str) else dumps(data, "emit").decode()
    lines = [f"event: {event}"] if event else []
    lines += [f"data: {line}" for line in _LINE_END.split(text)]
    block = ("\n".join(lines) + "\n\n").encode()
    if len(block) > EVENT_BYTES_MAX:
        raise PayloadTooLarge("emit", len(block), EVENT_BYTES_MAX)
    on_loop(scope.run, _emit, scope.run, scope.next_emit(), block)


def _emit(run: LiveRun, ident: str, block: bytes) -> None:
    if run.early is not None:  # observers get the response head first
        run.early.append((ident, block))
    else:
        run.emit(ident, block)


def _value(scope: Scope, name: str, make: Callable[[], bytes]) -> bytes:
    run = scope.run
    ident = scope.next_call()
    call = claim(run, ident, name, 0)
    if call is not None and call.value is not None:
        return call.value
    data = make()
    run.append(Kind.VALUE, f"{ident} {name}".encode(), data)
    return data


def now() -> datetime:
    """Return the time in UTC, to the millisecond; the same at every replay."""
    scope = scope_or_none()
    if scope is None:
        return datetime.now(UTC)
    run = scope.run
    data = on_loop(run, _value, scope, "now", lambda: orjson.dumps(run.log.now_ms()))
    return datetime.fromtimestamp(orjson.loads(data) / 1000, UTC)


def uuid7() -> UUID:
    """Return a new UUIDv7 (RFC 9562); the same at every replay."""
    scope = scope_or_none()
    if scope is None:
        return new_uuid7()
    data = on_loop(scope.run, _value, scope, "uuid7", lambda: new_uuid7().bytes)
    return UUID(bytes=data)


def random() -> _random.Random:
    """Return a random generator, seeded by the run and the task: the same at every replay.

    Not for secrets.
    """
    scope = scope_or_none()
    if scope is None:
        return _random.Random()  # noqa: S311 - said not to be for secrets
    if scope.random is None:
        scope.random = _random.Random(f"{scope.run.id}/{scope.path}")  # noqa: S311
    return scope.random
