"""Steps: run once, record, and return what was recorded ever after (I2)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from zlib import crc32

import orjson

from durable_endpoints import failures
from durable_endpoints.codec import Codec
from durable_endpoints.engine.observing import observed, observed_plain
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.errors import ControlSignal, Diverged, StepFailed
from durable_endpoints.journal import Recorded
from durable_endpoints.limits import ARGS_BYTES_MAX, NAME_CHARS_MAX
from durable_endpoints.quotas import RateLimit
from durable_endpoints.records import Entry, Kind
from durable_endpoints.redact import names_secret
from durable_endpoints.retry import Retry

T = TypeVar("T")

# Looking a member up costs more than everything else that is done with it here.
_STEP, _STEP_FAILED = Kind.STEP, Kind.STEP_FAILED
_TOOK_US_MAX: Final = 0xFFFFFFFF
_COLON: Final = ord(":")

AMBIGUITY_POLICIES: Final = ("retry", "ask", "fail")
INTERRUPT_POLICIES: Final = ("auto", "restart", "resume", "finalize", "fail", "hold")


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What a step is: its name, how its result is written, and its limits."""

    name: str
    codec: Codec
    timeout_s: float | None = None
    on_interrupt: str = "auto"
    secret: bool = False  # a parameter holds a secret: its arguments are not stored
    retry: Retry | None = None
    rate_limit: RateLimit | None = None
    compensate: Callable[..., Awaitable[Any]] | None = None
    effect: bool = False
    on_ambiguous: str = "retry"
    verify: Callable[..., Awaitable[Any]] | None = None
    about: Mapping[str, str] | None = None  # for who observes: attributes of its spans

    @property
    def staged(self) -> bool:
        """Whether it takes more than one go: then `attempts` runs it."""
        return self.effect or bool(self.retry or self.rate_limit or self.compensate)

    def __post_init__(self) -> None:
        if self.on_ambiguous not in AMBIGUITY_POLICIES:
            raise ValueError(
                f"on_ambiguous={self.on_ambiguous!r}: choose one of {', '.join(AMBIGUITY_POLICIES)}"
            )
        if not 0 < len(self.name) <= NAME_CHARS_MAX:
            raise ValueError(f"a step's name has 1 to {NAME_CHARS_MAX} characters: {self.name!r}")
        if self.on_interrupt not in INTERRUPT_POLICIES:
            raise ValueError(
                f"on_interrupt={self.on_interrupt!r}: choose one of {', '.join(INTERRUPT_POLICIES)}"
            )


def hash_args(
    spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, bytes]:
    """Return the hash of the arguments, and their JSON unless it is long or holds secrets (I19).

    (0, b"") if they have no JSON form.
    """
    if not args and not kwargs:
        return 0, b""
    try:
        data = orjson.dumps((args, kwargs) if kwargs else args, option=orjson.OPT_SORT_KEYS)
    except (TypeError, RecursionError):
        return 0, b""
    check = crc32(data)
    if spec.secret or len(data) > ARGS_BYTES_MAX or (_COLON in data and names_secret(data)):
        return check, b""
    return check, data


def claim(run: LiveRun, ident: str, name: str, check: int, args: bytes = b"") -> Recorded | None:
    """Return what the journal holds of a call; None when it is new.

    Raises: Diverged, after the run was parked.
    """
    if run.replay is None:
        return None
    journal = run.replay.journal
    try:
        call = journal.claim(ident, name, check, args)
    except Diverged as error:
        raise run.diverge(error.difference) from None
    if call is not None or journal.cancel_at is not None:
        run.replay.moved()
    return call


def outcome(spec: StepSpec, entry: Entry) -> Any:
    """Return the recorded result, or raise the recorded error."""
    if entry.kind == Kind.STEP_FAILED:
        raise failures.load(spec.name, entry.payload)
    return spec.codec.decode(entry.payload)


async def settle(run: LiveRun, scope: Scope | None = None) -> None:
    """Wait until something new may be appended: after all recorded, within the window."""
    if run.replay is not None:
        await run.replay.exhausted()
        if run.cancellation.pending:  # nothing new begins but cleaning up
            raise asyncio.CancelledError("the run was cancelled")
    if run.log.full:
        await run.log.room()
    if scope is not None:
        scope.check_life()


async def run_step(
    scope: Scope,
    ident: str,
    spec: StepSpec,
    function: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a coroutine function as the step `ident`, or return what is recorded of it."""
    run = scope.run
    check, recorded_args = hash_args(spec, args, kwargs)
    if run.replay is not None:
        entry = await _recorded(scope, ident, spec.name, check, recorded_args)
        if entry is not None:
            return outcome(spec, entry)
    replay = run.replay
    if replay is not None:
        replay.working += 1
    log, life = run.log, scope.begin_work(ident)
    began_s = log.monotonic_s()
    token = SCOPE.set(scope.inside_step())
    failure: Exception | None = None
    value = None
    try:
        observer = log.observer
        work = function(*args, **kwargs)
        work = work if observer is None else observed(observer.attempt(run, ident, spec), work)
        value = await (work if spec.timeout_s is None else timed(work, spec.timeout_s))
    except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
        failure = error
    finally:
        SCOPE.reset(token)
        if replay is not None:
            replay.working -= 1
        life.working -= 1
        life.at_work.discard(ident)
    kind, data = _STEP, b""
    if failure is None:
        data, value = spec.codec.record(value)
    else:
        kind, data = _STEP_FAILED, failures.dump(failure)
    now_s, pace = log.monotonic_s(), run.pace
    if pace.hogs(began_s, now_s):
        await pace.give_way(run)
    if run.replay is not None or log.full or life.over:
        await settle(run, scope)
    took_us = int((now_s - began_s) * 1e6)
    took_us = took_us if took_us < _TOOK_US_MAX else _TOOK_US_MAX
    log.meters.took_us.append(took_us)
    key = f"{ident} {spec.name}".encode()
    seq = run.append(kind, key, data, check, took_us, recorded_args)
    if run.strict or pace.shared:
        await deliver(run, seq)
    if failure is not None:
        raise as_recorded(spec, failure)
    return value


async def deliver(run: LiveRun, seq: int) -> None:
    """Let a completion reach the handler: in its turn among the run's tasks, if strict durable."""
    if not run.pace.shared:
        await run.durable(seq)
        return
    ticket = run.pace.ticket()
    try:
        if run.strict:
            await run.durable(seq)
    finally:
        await run.pace.pass_on(ticket)


async def timed(work: Awaitable[Any], timeout_s: float) -> Any:
    """Await something for so many seconds; TimeoutError after them."""
    async with asyncio.timeout(timeout_s):
        return await work


async def _recorded(scope: Scope, ident: str, name: str, check: int, args: bytes) -> Entry | None:
    """Return what is recorded of a call, when its turn has come."""
    run = scope.run
    call = claim(run, ident, name, check, args)
    if call is None or not call.deliveries:
        if run.replay is not None and run.replay.journal.telling:
            await settle(run)  # nothing new begins but cleaning up
        return None
    delivery = call.deliveries[0]
    if run.replay is not None:
        await run.replay.turn(delivery)
    return delivery.entry


def record(
    run: LiveRun, ident: str, spec: StepSpec, data: bytes, failure: Exception | None,
    check: int, took_us: int, recorded_args: bytes,
) -> int:  # fmt: skip
    """Append a step's outcome; return its seq."""
    kind = _STEP
    if failure is not None:
        kind, data = _STEP_FAILED, failures.dump(failure)
    key = f"{ident} {spec.name}".encode()
    took_us = min(took_us, _TOOK_US_MAX)
    run.log.meters.took_us.append(took_us)
    return run.append(kind, key, data, check, took_us, recorded_args)


def as_recorded(spec: StepSpec, failure: Exception) -> Exception:
    """Return the error as a replay will raise it, so that live and replay are the same."""
    error = failures.load(spec.name, failures.dump(failure))
    if isinstance(error, StepFailed):
        error.__cause__ = failure
        return error
    return failure


def run_sync_step(
    scope: Scope,
    ident: str,
    spec: StepSpec,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a plain function as a step, on the event loop's thread or on another one."""
    run = scope.run
    check, recorded_args = hash_args(spec, args, kwargs)
    entry = on_loop(run, _recorded_now, scope, ident, spec.name, check, recorded_args)
    if entry is not None:
        return outcome(spec, entry)
    on_loop(run, scope.life.begin, ident)
    try:
        return _run_plain(scope, ident, spec, function, args, kwargs, check, recorded_args)
    finally:
        on_loop(run, scope.life.end, ident)


def _run_plain(
    scope: Scope, ident: str, spec: StepSpec, function: Callable[..., Any],
    args: tuple[Any, ...], kwargs: dict[str, Any], check: int, recorded_args: bytes,
) -> Any:  # fmt: skip
    """Run a plain function now, and record it."""
    run = scope.run
    began_s = run.log.clock.monotonic_s()
    token = SCOPE.set(scope.inside_step())
    failure: Exception | None = None
    data, value = b"", None
    if run.log.observer is not None:
        seen = run.log.observer.attempt(run, ident, spec)
        function = partial(observed_plain, seen, function)
    try:
        value = function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
        failure = error
    finally:
        SCOPE.reset(token)
    if failure is None:
        data, value = spec.codec.record(value)
    took_us = int((run.log.clock.monotonic_s() - began_s) * 1e6)
    on_loop(run, record, run, ident, spec, data, failure, check, took_us, recorded_args)
    if failure is not None:
        raise as_recorded(spec, failure)
    return value


def _recorded_now(scope: Scope, ident: str, name: str, check: int, args: bytes) -> Entry | None:
    """Return what is recorded of a call that cannot wait for its turn."""
    run = scope.run
    call = claim(run, ident, name, check, args)
    if call is None or not call.deliveries:
        return None
    if run.replay is not None:
        run.replay.take(call.deliveries[0])
    return call.deliveries[0].entry


def on_loop(run: LiveRun, function: Callable[..., T], *args: Any) -> T:
    """Call a function on the event loop's thread and return its result."""
    log = run.log
    if threading.get_ident() == log.thread_id:
        return function(*args)

    async def call() -> tuple[T | None, ControlSignal | None]:
        if log.full:
            await log.room()
        try:
            return function(*args), None
        except ControlSignal as signal:  # a BaseException would end the loop, not the thread
            return None, signal

    # An empty context: this task belongs to no task of the run.
    waiting = Context().run(asyncio.run_coroutine_threadsafe, call(), log.loop)
    result, signal = waiting.result()
    if signal is not None:
        raise signal
    return result  # type: ignore[return-value]
