"""What the golden stores were made by. Their journals name these functions and their calls.

Never change what is here: a change is what the test is to show. Add functions for new releases.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import durable_endpoints as durable

# Set where a store is made: what stops there goes on only in the next process.
MAKING = asyncio.Event()


async def stops_while_making() -> None:
    """Stay here for ever, in the process that makes a store."""
    if MAKING.is_set():
        await asyncio.Event().wait()


@durable.step
async def draw(label: str) -> dict[str, Any]:
    return {"label": label, "text": "ä\u2028\U0001f600", "number": 0.1, "list": [1, None, True]}


@durable.step
async def fails(label: str) -> None:
    raise ValueError(label)


@durable.step(on_interrupt="resume")
async def tokens(count: int, recorded: list[str] | None = None) -> AsyncIterator[str]:
    for number in range(len(recorded or ()), count):
        if number == count // 2:
            await stops_while_making()
        yield f"token {number}"


@durable.step(on_interrupt="restart")
async def restarted(count: int) -> AsyncIterator[str]:
    for number in range(count):
        if number == count // 2:
            await stops_while_making()
        yield f"again {number}"


@durable.effect
async def act(label: str) -> str:
    return f"{label} {durable.idempotency_key()}"


@durable.step(retry=durable.Retry(attempts=None, initial=3600))
async def unsteady(label: str) -> str:
    if MAKING.is_set():
        raise ConnectionError(label)
    return label


async def undo(label: str) -> None:
    durable.current_run()


@durable.step(compensate=undo)
async def undoable(label: str) -> str:
    return label


@durable.durable
async def finished() -> list[Any]:
    """Every kind of entry there is, to the end."""
    drawn = [await draw("a"), durable.now().isoformat(), str(durable.uuid7())]
    durable.emit({"first": drawn[0]}, event="note")
    try:
        await fails("b")
    except ValueError as error:
        drawn.append(str(error))
    drawn += await asyncio.gather(*(draw(f"c{number}") for number in range(3)))
    drawn.append(await act("d"))
    drawn.append(durable.patched("e"))
    durable.emit("last\nline")
    return drawn


@durable.durable
async def failed() -> None:
    await undoable("f")
    raise RuntimeError("it was to fail")


@durable.durable
async def cut_in_a_step() -> list[Any]:
    first = await draw("g")
    durable.emit("before")
    await stops_while_making()
    return [first, await draw("h"), await act("i")]


@durable.durable
async def cut_in_a_stream() -> list[str]:
    found = []
    async for token in tokens(6):
        durable.emit(token)
        found.append(token)
    return found


@durable.durable
async def cut_in_a_rewound_stream() -> list[str]:
    found = []
    async for token in restarted(6):
        durable.emit(token)
        found.append(token)
    return found


@durable.durable
async def asks() -> Any:
    durable.emit("asking")
    return await durable.wait_for_signal("go")


@durable.durable
async def sleeps() -> str:
    await durable.sleep(3600)
    return "slept"


@durable.durable
async def tries() -> str:
    return await unsteady("j")


@durable.durable
async def child() -> str:
    return str(await durable.wait_for_signal("child"))


@durable.durable
async def parent() -> Any:
    return await (await durable.current_run().spawn(child))


@durable.durable
async def page(request: Request) -> StreamingResponse:
    """A request, with all that is recorded of one, cut in the middle of its stream."""
    asked = (await request.body()).decode()

    async def body() -> AsyncIterator[str]:
        yield f"data: {asked} {request.query_params['q']} {request.headers['x-kept']}\n\n"
        async for token in tokens(4):
            yield f"data: {token}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream", headers={"x-made": "so"})


def web(engine: durable.Engine) -> Starlette:
    """Return the app whose endpoint `page` is."""
    middleware = Middleware(durable.DurableMiddleware, engine=engine)
    return Starlette(routes=[Route("/page", page, methods=["POST"])], middleware=[middleware])


# The request of which a golden store holds a part of the answer.
REQUEST = {"url": "/page?q=%C3%A4", "content": "asked",
           "headers": {"x-kept": "kept", "idempotency-key": "golden"}}  # fmt: skip
ANSWER = ["asked ä kept", "token 0", "token 1", "token 2", "token 3"]

RUNS = (finished, failed, cut_in_a_step, cut_in_a_stream, cut_in_a_rewound_stream, asks, sleeps,
        tries, parent)  # fmt: skip
