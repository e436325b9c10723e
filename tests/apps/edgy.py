"""An app for an edge node (LOCAL set) or a central one, on the store at CENTRE.

Each execution of a step appends its run, label and process to the file at COUNTS, and has a result
of its own, so that whatever is made twice shows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse

from durable_endpoints import (
    DurableMiddleware,
    EdgeStore,
    current_run,
    durable,
    step,
    wait_for_signal,
)
from durable_endpoints.asgi import drain

drain.drain_all.__defaults__ = (0.1,)  # a run that takes long is not waited for
_COUNTS = os.open(os.environ["COUNTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@step
async def draw(number: int, pause_ms: int) -> str:
    os.write(_COUNTS, f"{current_run().id} {number} {os.getpid()}\n".encode())
    await asyncio.sleep(pause_ms / 1000)
    return f"{number}:{os.urandom(4).hex()}"


app = FastAPI()


@app.post("/draw", response_class=EventSourceResponse)
@durable
async def stream(count: int, pause_ms: int = 10) -> AsyncIterator[dict[str, str]]:
    for number in range(count):
        yield {"drawn": await draw(number, pause_ms)}


@app.post("/once")
@durable
async def once() -> dict[str, str]:
    return {"drawn": await draw(0, 0)}


@app.post("/ask", response_class=EventSourceResponse)
@durable
async def ask() -> AsyncIterator[dict[str, str]]:
    yield {"drawn": await draw(0, 0)}
    yield {"answer": await wait_for_signal("go")}


if "LOCAL" in os.environ:
    store: EdgeStore | str = EdgeStore(
        os.environ["LOCAL"], os.environ["CENTRE"],
        hand_over_after=float(os.environ.get("HAND_OVER_S", "30")),
        unshipped_max=int(os.environ.get("UNSHIPPED_MAX", "100_000_000")),
    )  # fmt: skip
else:
    store = os.environ["CENTRE"]
app.add_middleware(DurableMiddleware, store=store, suspend_after=0.2)
