"""Stream steps: every item is recorded as it flows, and a crash in the middle has a policy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from durable_endpoints import failures
from durable_endpoints.engine.observing import observed_items
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import StepSpec, as_recorded, claim, deliver, hash_args, settle
from durable_endpoints.engine.stream_attempts import Again, StreamAttempts
from durable_endpoints.errors import StreamInterrupted
from durable_endpoints.journal import Recorded
from durable_endpoints.records import Kind

T = TypeVar("T")
_ITEM = Kind.ITEM
CLOSED = b"closed"  # payload of the end of a stream that its consumer left early
TRUNCATED = b"truncated"
LAST = b"last"  # of the end that was recorded with the item before it


@dataclass(frozen=True, slots=True)
class Last(Generic[T]):
    """Yielded by a stream step: this item, and the stream is complete with it.

    The item and the end are recorded as one, so no crash can part them.
    """

    value: T


async def run_stream(
    scope: Scope,
    ident: str,
    spec: StepSpec,
    function: Callable[..., AsyncIterator[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> AsyncGenerator[Any, None]:
    """Yield a stream step's items: the recorded ones first, then new ones."""
    run = scope.run
    check, recorded_args = hash_args(spec, args, kwargs)
    key = f"{ident} {spec.name}".encode()
    call = claim(run, ident, spec.name, check, recorded_args)
    items: list[Any] = []
    if call is not None and (call.policy or call.deliveries):
        ended = call.ended
        async with aclosing(_recorded(scope, spec, call, items)) as recorded:
            async for item in recorded:
                yield item
        if ended:
            return
        await settle(run)
        _interrupted(run, spec, call.policy or spec.on_interrupt, key, items)
        if call.policy == "finalize":
            return
    else:  # new, or nothing of it stands but that attempts have failed
        await settle(run)
        policy = spec.on_interrupt.encode()
        run.append(Kind.STREAM, key, policy, check=check, args=recorded_args)
    attempts = StreamAttempts(scope, spec, key, call, check)
    await attempts.pause()
    seen = run.log.observer
    while True:
        if spec.on_interrupt == "resume":
            kwargs = {**kwargs, "recorded": list(items)}
        source = function(*args, **kwargs)
        source = source if seen is None else observed_items(seen.attempt(run, ident, spec), source)
        try:
            async with aclosing(_live(scope, spec, key, source, attempts, items)) as live:
                if spec.on_interrupt == "hold":
                    held = [item async for item in live]
                    await run.durable(run.seq - 1)
                    for item in held:
                        yield item
                    return
                async for item in live:
                    yield item
        except Again:
            await attempts.pause()
        else:
            return


async def _recorded(
    scope: Scope, spec: StepSpec, call: Recorded, items: list[Any]
) -> AsyncGenerator[Any, None]:
    """Yield what the journal holds of a stream, each item in its turn, and collect it."""
    run, given = scope.run, True
    if call.policy == "hold":  # live, too, everything was recorded before anything was given on
        last = call.deliveries[-1].entry if call.deliveries else None
        given = last is not None and last.kind == Kind.STREAM_END
        for delivery in call.deliveries:
            if run.replay is not None:
                await run.replay.turn(delivery)
    for delivery in call.deliveries:
        if run.replay is not None and not delivery.done:
            await run.replay.turn(delivery)
        entry = delivery.entry
        if entry.kind == Kind.STREAM_END:
            return
        if entry.kind == Kind.STEP_FAILED:
            raise _failure(spec, entry.payload, items)
        items.append(spec.codec.decode(entry.payload))
        _take_close(run, call, delivery.index)
        if given:
            yield items[-1]


async def _live(
    scope: Scope, spec: StepSpec, key: bytes, source: AsyncIterator[Any],
    attempts: StreamAttempts, items: list[Any],
) -> AsyncGenerator[Any, None]:  # fmt: skip
    """Record items as they come; record how the stream ended."""
    run, life = scope.run, scope.life
    inside = scope.inside_step()
    began_s = run.log.clock.monotonic_s()
    last = False
    await attempts.begin()
    ident = key.decode().partition(" ")[0]
    scope.begin_work(ident)
    try:
        while True:
            token = SCOPE.set(inside)
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            finally:
                SCOPE.reset(token)
            last = type(item) is Last
            value = await _record(scope, spec, key, item.value if last else item, last=last)
            attempts.items += 1
            if spec.retry is not None:
                items.append(value)
            yield value
            if last:
                return
    except GeneratorExit:
        live = run.fenced is None and not life.over and not last
        if live and not run.over and not run.cancellation.asked:
            run.append(Kind.STREAM_END, key, CLOSED)
        raise
    except Exception as failure:  # noqa: BLE001 - whatever it raises is its outcome
        if await _failed(scope, spec, key, attempts, failure):
            return
    finally:
        attempts.end()
        life.end(ident)
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
    scope.check_life()
    took_us = int((run.log.clock.monotonic_s() - began_s) * 1e6)
    run.append(Kind.STREAM_END, key, took_us=min(took_us, 0xFFFFFFFF))


async def _record(scope: Scope, spec: StepSpec, key: bytes, item: Any, *, last: bool) -> Any:
    """Append an item, and the end with it if it is the last; return it as it is recorded."""
    run = scope.run
    data, value = spec.codec.record(item)
    if run.log.full:
        await run.log.room()
    if scope.life.over:
        scope.check_life()
    seq = run.append(_ITEM, key, data)
    if last:
        run.append(Kind.STREAM_END, key, LAST)
    if run.strict or run.pace.shared:
        await deliver(run, seq)
    return value


async def _failed(
    scope: Scope, spec: StepSpec, key: bytes, attempts: StreamAttempts, failure: Exception
) -> bool:
    """Record a failure; True if what there is of the stream is to be its result.

    Raises: the failure as it is recorded; Again.
    """
    run = scope.run
    await settle(run)
    scope.check_life()
    if await attempts.failed(failure) == "truncated":
        run.append(Kind.STREAM_END, key, TRUNCATED)
        return True
    run.append(Kind.STEP_FAILED, key, failures.dump(failure))
    raised = as_recorded(spec, failure)
    if spec.retry is not None:
        run.given_up = raised, key
    raise raised from failure.__cause__


def _take_close(run: LiveRun, call: Recorded, index: int) -> None:
    """Take the recorded close together with the item after which the consumer left."""
    last = call.deliveries[-1]
    leaves = last.entry.kind == Kind.STREAM_END and last.entry.payload in (CLOSED, LAST)
    if leaves and len(call.deliveries) > 1 and call.deliveries[-2].index == index:
        call.deliveries.pop()
        if run.replay is not None:
            run.replay.take(last)


def _interrupted(run: LiveRun, spec: StepSpec, policy: str, key: bytes, items: list[Any]) -> None:
    """Apply the policy to a stream that a crash cut and that readers have seen a part of.

    Raises: StreamInterrupted, recorded, if the policy is to tell the handler.
    """
    if policy == "finalize":
        run.append(Kind.STREAM_END, key, TRUNCATED)
    elif policy != "resume":
        error = StreamInterrupted(spec.name, items)
        stored = {"type": f"{__name__}:StreamInterrupted", "message": str(error)}
        run.append(Kind.STEP_FAILED, key, orjson.dumps({**stored, "args": [], "fields": {}}))
        raise error


def _failure(spec: StepSpec, payload: bytes, items: list[Any]) -> Exception:
    if orjson.loads(payload)["type"].endswith(":StreamInterrupted"):
        return StreamInterrupted(spec.name, items)
    return failures.load(spec.name, payload)
