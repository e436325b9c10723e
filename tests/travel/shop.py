"""The app behind these tests; `SHOP` changes it, as a deploy would."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.sse import EventSourceResponse

from durable_endpoints import (
    DurableMiddleware,
    Retry,
    approval,
    current_run,
    durable,
    effect,
    now,
    patched,
    random,
    sleep,
    step,
    wait_for_signal,
)


def changed(what: str) -> bool:
    """Say whether the code is as a deploy would have changed it."""
    return os.environ.get("SHOP", "") == what


@asynccontextmanager
async def life(_: FastAPI) -> AsyncIterator[dict[str, int]]:
    """What requests find in their state."""
    yield {"rate": 2}


app = FastAPI(lifespan=life)
app.add_middleware(DurableMiddleware, store="sqlite:///durable.db", suspend_after=0)


def note(line: str) -> None:
    """Leave a line of evidence that something ran."""
    with Path("notes").open("a") as file:
        file.write(line + "\n")


@step
async def price(item: str) -> int:
    """A step."""
    note("price")
    return len(item)


@step
def stock(item: str) -> int:
    """A plain step."""
    note("stock")
    return len(item)


@effect(compensate=price)
async def charge(amount: Any) -> str:
    """An effect that can be undone."""
    note("charge")
    return f"paid {amount}"


@step
async def words(n: int) -> AsyncIterator[str]:
    """A stream step, with what an editor must not be shown as it is."""
    for i in range(n):
        note("word")
        yield f"it'''s \u202e{i} \\ "


@step(retry=Retry(attempts=1))
async def breaks() -> None:
    """A step that gives up."""
    note("breaks")
    raise ConnectionError("gone")


@durable
async def child(n: int) -> int:
    """A run of its own."""
    return await price("x" * n)


@app.post("/buy")
@durable(version="2" if changed("version") else "1")
async def buy(item: str, request: Request) -> dict[str, Any]:
    """Steps, one after the other."""
    amount = await price(item) * request.state.rate
    if changed("arguments"):
        amount += 1
    if changed("order"):
        stock(item)
    paid = await charge(amount)
    if changed("more"):
        await price("another")
    left = stock(item)
    return {
        "paid": paid,
        "left": left,
        "at": now().isoformat(),
        "lot": random().random(),
        "new": patched("x"),
    }


@app.get("/chat", response_class=EventSourceResponse)
@durable
async def chat(n: int) -> AsyncIterator[dict[str, str]]:
    """A stream of events."""
    async for word in words(n):
        yield {"w": word.upper() if changed("answer") else word}


@app.post("/side")
@durable
async def side() -> list[int]:
    """Steps side by side."""
    found = await asyncio.gather(*(price("x" * n) for n in range(5)))
    return [*found, await (await current_run().spawn(child, 3))]


@app.post("/wait")
@durable
async def wait(item: str) -> dict[str, Any]:
    """Waits."""
    await sleep(timedelta(milliseconds=20))
    await price("other" if changed("wait") else item)
    said = await wait_for_signal("ok")
    decided = await approval("sure", summary=item)
    return {"ok": said, "sure": decided.approved, "paid": await charge(1)}


@app.post("/bad")
@durable
async def bad() -> None:
    """Fails, and is undone."""
    await charge("x")
    raise KeyError("bad") if changed("error") else ValueError("bad")


@app.post("/dead")
@durable
async def dead() -> None:
    """Gives up."""
    await breaks()
