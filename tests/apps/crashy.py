"""The app behind the crash tests: every kind of durable work, every execution counted outside.

Its working directory is the test's: `durable.db`, and `executions.log`, to which each execution
of a step appends a line as it begins: run id, label, nonce, process id. A step's result is its
label and its nonce, so a result that was made twice shows wherever it gets to.

Each execution of an effect appends its key to `effects.log` besides: run id, label, key.
`STORE` is the database (default `durable.db`); `BACKOFF_S` shortens the waits before recoveries,
`GRACE_S` that of a drain.
`DURABLE_CRASH_AT="name:n"` makes the process kill itself at a named point (tests/crash/points.py).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse
from sse_starlette.event import ServerSentEvent

from durable_endpoints import (
    DurableMiddleware,
    Retry,
    StreamInterrupted,
    current_run,
    durable,
    effect,
    emit,
    idempotency_key,
    now,
    patched,
    sleep,
    step,
    uuid7,
    wait_for_signal,
)
from durable_endpoints import random as run_random
from durable_endpoints.asgi import drain
from durable_endpoints.engine import recovery
from tests.crash.points import crashing_store

Made: TypeAlias = dict[str, str]
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_COUNTS = os.open("executions.log", _APPEND, 0o644)
_EFFECTS = os.open("effects.log", _APPEND, 0o644)
_TRIED: set[tuple[str, str]] = set()
_POLICIES = ("auto", "restart", "resume", "finalize", "fail", "hold")


if "GRACE_S" in os.environ:  # how long a drain waits for runs at work
    drain.drain_all.__defaults__ = (float(os.environ["GRACE_S"]),)
if "BACKOFF_S" in os.environ:  # minutes otherwise, until a run is dead
    recovery.RECOVERY_BACKOFF_S = (0.0, *[float(os.environ["BACKOFF_S"])] * 5)  # type: ignore[misc]


def executed(label: str) -> Made:
    """Count one execution where no crash can undo it."""
    nonce = os.urandom(6).hex()
    line = f"{current_run().id} {label} {nonce} {os.getpid()}\n"
    os.write(_COUNTS, line.encode())
    return {"label": label, "nonce": nonce}


async def _pause(most_ms: float) -> None:
    # Another wait at each attempt: scheduling is what a replay must not depend on.
    await asyncio.sleep(random.random() * most_ms / 1000)


@step
async def draw(label: str, most_ms: float) -> Made:
    made = executed(label)
    await _pause(most_ms)
    return made


@step
def draw_sync(label: str, most_ms: float) -> Made:
    made = executed(label)
    time.sleep(random.random() * most_ms / 1000)
    return made


@effect
async def act(label: str, most_ms: float) -> Made:
    os.write(_EFFECTS, f"{current_run().id} {label} {idempotency_key()}\n".encode())
    made = executed(label)
    await _pause(most_ms)
    return made


@step(retry=Retry(attempts=None, initial=0.01, maximum=0.05))
async def unsteady(label: str, most_ms: float) -> Made:
    made = executed(label)
    await _pause(most_ms)
    tried = (current_run().id, label)
    if tried not in _TRIED:  # the first attempt in each process fails
        _TRIED.add(tried)
        raise ConnectionError("once more")
    return made


async def undo(label: str, most_ms: float) -> Made:
    os.write(_EFFECTS, f"{current_run().id} undo-{label} {idempotency_key()}\n".encode())
    return executed(f"undo-{label}")


@step(compensate=undo)
async def undoable(label: str, most_ms: float) -> Made:
    made = executed(label)
    await _pause(most_ms)
    return made


async def _tokens(
    label: str, count: int, most_ms: float, recorded: list[Made] | None = None
) -> AsyncIterator[Made]:
    for number in range(len(recorded or []), count):
        await _pause(most_ms)
        yield executed(f"{label}#{number}")


def _with_policy(policy: str) -> Any:
    if policy == "resume":
        return step(name=policy, on_interrupt=policy)(_tokens)

    async def tokens(label: str, count: int, most_ms: float) -> AsyncIterator[Made]:
        async for item in _tokens(label, count, most_ms):
            yield item

    return step(name=policy, on_interrupt=policy)(tokens)


TOKENS = {policy: _with_policy(policy) for policy in _POLICIES}


async def dependency() -> AsyncIterator[str]:
    """A dependency that stays open until the run ends."""
    yield "open"


Held = Annotated[str, Depends(dependency)]
routes = APIRouter()


@routes.post("/json")
@durable
async def json_steps(held: Held, n: int = 20, ms: float = 20) -> dict[str, Any]:
    made = [await draw(f"json{i}", ms) for i in range(n)]
    return {"held": held, "made": made}


@step
async def steady(label: str, ms: float) -> Made:
    made = executed(label)
    await asyncio.sleep(ms / 1000)
    return made


@routes.post("/steady")
@durable
async def one_step(ms: float) -> Made:
    """One step that takes just so long."""
    return await steady("steady", ms)


@routes.post("/sync")
@durable
def sync_steps(n: int = 8, ms: float = 20) -> dict[str, Any]:
    return {"made": [draw_sync(f"sync{i}", ms) for i in range(n)], "at": now().isoformat()}


@routes.post("/background")
@durable
async def background(tasks: BackgroundTasks, n: int = 5, ms: float = 20) -> dict[str, Any]:
    async def after() -> None:
        for i in range(n):
            await draw(f"after{i}", ms)

    made = [await draw(f"before{i}", ms) for i in range(n)]
    tasks.add_task(after)
    return {"made": made}


@routes.post("/sse")
@durable
async def sse(held: Held, n: int = 30, ms: float = 20) -> EventSourceResponse:
    async def body() -> AsyncIterator[ServerSentEvent]:
        first = await draw("first", ms)
        yield ServerSentEvent(first["nonce"], event="first")
        for i in range(n):
            made = await draw(f"item{i}", ms)
            yield ServerSentEvent(f"{made['label']} {made['nonce']}")
            if i % 10 == 5:
                emit({"beside": made["nonce"]}, event="note")
        yield ServerSentEvent(held, event="held")

    return EventSourceResponse(body())


@routes.post("/values")
@durable
async def values(request: Request, n: int = 20, ms: float = 20) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for i in range(n):
            await _pause(ms)
            drawn = run_random().randrange(1_000_000)
            made = await draw(f"value{i}", 0) if i % 4 == 0 else None
            yield f"data: {now().isoformat()} {uuid7()} {drawn} {made}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@routes.post("/concurrent")
@durable
async def concurrent(n: int = 6, ms: float = 30) -> StreamingResponse:
    async def pair(i: int) -> list[Made]:
        return [await draw(f"pair{i}.{j}", ms) for j in range(2)]

    async def body() -> AsyncIterator[str]:
        gathered = await asyncio.gather(*(draw(f"gather{i}", ms) for i in range(n)))
        yield f"data: {gathered}\n\n"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pair(i)) for i in range(n)]
        yield f"data: {[task.result() for task in tasks]}\n\n"
        for done in asyncio.as_completed([draw(f"race{i}", ms) for i in range(n)]):
            yield f"data: {await done}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@routes.post("/text")
@durable
async def text(n: int = 30, ms: float = 20) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        async for made in TOKENS["resume"]("text", n, ms):
            yield f"{made['label']} {made['nonce']}\n"

    return StreamingResponse(body(), media_type="text/plain")


@routes.post("/tokens/{policy}")
@durable
async def tokens(policy: str, n: int = 30, ms: float = 20) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        made = await draw("prompt", ms)
        yield f"data: {made}\n\n"
        got = []
        try:
            async for item in TOKENS[policy]("token", n, ms):
                got.append(item["nonce"])
                yield f"data: {item}\n\n"
        except StreamInterrupted as cut:
            recorded: list[Any] = list(cut.recorded)
            yield f"event: cut\ndata: {[item['nonce'] for item in recorded]} of {got}\n\n"
        made = await draw("end", ms)
        yield f"data: {made} after {got}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@durable
async def helper(most_ms: float) -> Made:
    """A run that another one begins."""
    return await draw("helper", most_ms)


@routes.post("/everything")
@durable
async def everything(ms: float = 20) -> StreamingResponse:
    """Every kind of waiting and failing. It ends only once it was sent the signal `go`."""

    async def body() -> AsyncIterator[str]:
        yield f"data: {await draw('begin', ms)}\n\n"
        new = patched("a change")
        current_run().label(kind="everything", new=new)
        await sleep(0.05)
        yield f"data: {new} {await act('effect', ms)}\n\n"
        yield f"data: {await unsteady('unsteady', ms)}\n\n"
        child = await current_run().spawn(helper, ms)
        yield f"data: told {await wait_for_signal('go')}\n\n"
        yield f"data: {await child}\n\n"
        yield f"data: {await undoable('undoable', ms)}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@routes.post("/undone")
@durable
async def undone(ms: float = 20) -> dict[str, Any]:
    """Does two things, fails, and undoes them."""
    for label in ("first", "second"):
        await undoable(label, ms)
    raise RuntimeError("it was to fail")


@step(retry=Retry(attempts=1))
async def given_up(label: str, mended: str) -> Made:
    made = executed(label)
    if not os.path.exists(mended):
        raise ConnectionError("not yet")
    return made


@routes.post("/dead")
@durable
async def dead(mended: str) -> Made:
    """Is dead, until there is a file of this name and somebody has it go on."""
    await draw("before", 0)
    return await given_up("given-up", mended)


@routes.post("/poison")
@durable
async def poison() -> StreamingResponse:
    """Takes the process with it, every time."""

    async def body() -> AsyncIterator[str]:
        yield f"data: {await draw('last', 0)}\n\n"
        await asyncio.sleep(0.05)  # so that the run is durable, and comes back
        executed("poison")
        os._exit(13)

    return StreamingResponse(body(), media_type="text/event-stream")


@routes.post("/poisoned-stream")
@durable
async def poisoned_stream() -> StreamingResponse:
    """Takes the process with it, every time after some tokens that a crash makes void."""

    async def tokens() -> AsyncIterator[Made]:
        for number in range(3):
            await asyncio.sleep(0.02)
            yield executed(f"token#{number}")
        executed("poison")
        os._exit(13)

    async def body() -> AsyncIterator[str]:
        async for item in step(name="tokens", on_interrupt="restart")(tokens)():
            yield f"data: {item}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@routes.post("/bad")
@durable
async def bad(how: str) -> None:
    """Makes what cannot be written: text that is no UTF-8, as models do."""
    text = "lone \ud800 surrogate"

    async def fail() -> None:
        raise ValueError(text)

    if how == "step":
        await step.run("fails", fail)
    elif how == "result":
        await step.run("result", lambda: text)
    elif how == "name":
        await step.run(text, lambda: 1)
    elif how == "emit":
        emit(text)
    raise ValueError(text)


@routes.post("/fork")
@durable
async def fork() -> dict[str, int]:
    """Leaves a child behind that outlives the server, as a process pool would."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return {"child": child}


def build(**options: Any) -> FastAPI:
    """Return the app with these options of its middleware."""
    made = FastAPI()
    made.include_router(routes)
    made.add_middleware(DurableMiddleware, **options)
    return made


app = build(store=crashing_store(os.environ.get("STORE")))
