"""Stream steps: every item is recorded as it flows, and a crash in the middle has a policy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import orjson

from durable_endpoints import failures
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import StepSpec, as_recorded, claim, hash_args, settle
from durable_endpoints.errors import StreamInterrupted
from durable_endpoints.journal import Recorded
from durable_endpoints.records import Kind

_ITEM = Kind.ITEM
CLOSED = b"closed"  # payload of the end of a stream that its consumer left early
TRUNCATED = b"truncated"


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
    call = claim(run, ident, spec.name, check)
    items: list[Any] = []
    if call is not None:
        async with aclosing(_recorded(scope, spec, call, items)) as recorded:
            async for item in recorded:
                yield item
        if call.ended:
            return
        await settle(run)
        _interrupted(run, spec, call.policy or spec.on_interrupt, key, items)
        if call.policy == "finalize":
            return
    else:
        await settle(run)
        policy = spec.on_interrupt.encode()
        run.append(Kind.STREAM, key, policy, check=check, args=recorded_args)
    if spec.on_interrupt == "resume":
        kwargs = {**kwargs, "recorded": list(items)}
    async with aclosing(_live(scope, spec, key, function(*args, **kwargs))) as live:
        if spec.on_interrupt == "hold":
            held = [item async for item in live]
            await run.durable(run.seq - 1)
            for item in held:
                yield item
            return
        async for item in live:
            yield item


async def _recorded(
    scope: Scope, spec: StepSpec, call: Recorded, items: list[Any]
) -> AsyncGenerator[Any, None]:
    """Yield what the journal holds of a stream, each item in its turn, and collect it."""
    run = scope.run
    if call.policy == "hold":  # live, too, everything was recorded before anything was given on
        for delivery in call.deliveries:
            if run.replay is not None:
                await run.replay.turn(delivery, concurrent=scope.concurrent)
    for delivery in call.deliveries:
        if run.replay is not None and not delivery.done:
            await run.replay.turn(delivery, concurrent=scope.concurrent)
        entry = delivery.entry
        if entry.kind == Kind.STREAM_END:
            return
        if entry.kind == Kind.STEP_FAILED:
            raise _failure(spec, entry.payload, items)
        items.append(spec.codec.decode(entry.payload))
        _take_close(run, call, delivery.index)
        yield items[-1]


async def _live(
    scope: Scope, spec: StepSpec, key: bytes, source: AsyncIterator[Any]
) -> AsyncGenerator[Any, None]:
    """Record items as they come; record how the stream ended."""
    run = scope.run
    codec, inside = spec.codec, scope.inside_step()
    began_s = run.log.clock.monotonic_s()
    life = scope.life
    life.working += 1
    try:
        while True:
            token = SCOPE.set(inside)
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            finally:
                SCOPE.reset(token)
            data, value = codec.record(item)
            if run.log.full:
                await run.log.room()
            if life.over:
                scope.check_life()
            seq = run.append(_ITEM, key, data)
            if run.strict:
                await run.durable(seq)
            yield value
    except GeneratorExit:
        live = run.fenced is None and not life.over
        if live and not run.over and not run.cancelling:
            run.append(Kind.STREAM_END, key, CLOSED)
        raise
    except Exception as failure:  # noqa: BLE001 - whatever it raises is its outcome
        await settle(run)
        run.append(Kind.STEP_FAILED, key, failures.dump(failure))
        raise as_recorded(spec, failure) from failure.__cause__
    finally:
        life.working -= 1
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
    scope.check_life()
    took_us = int((run.log.clock.monotonic_s() - began_s) * 1e6)
    run.append(Kind.STREAM_END, key, took_us=min(took_us, 0xFFFFFFFF))


def _take_close(run: LiveRun, call: Recorded, index: int) -> None:
    """Take the recorded close together with the item after which the consumer left."""
    last = call.deliveries[-1]
    leaves = last.entry.kind == Kind.STREAM_END and last.entry.payload == CLOSED
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
