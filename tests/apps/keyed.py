"""Handlers that exclude each other, on a store of several nodes: CLUSTER_STORE.

Whatever begins and ends is a line of `work.log` in the working directory, in the order in which it
happened on all nodes: `begin`/`end` of a handler with its key, `use`/`used` of the limit.
"""

from __future__ import annotations

import asyncio
import os
import random

from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, RateLimit, current_run, durable, step

_WORK = os.open("work.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
AT_A_TIME = 2
app = FastAPI()
app.add_middleware(DurableMiddleware, store=os.environ["CLUSTER_STORE"], suspend_after=0.2)


def note(word: str, key: str = "-") -> None:
    os.write(_WORK, f"{word} {key} {current_run().id} {os.getpid()}\n".encode())


async def pause(most_ms: float) -> None:
    await asyncio.sleep(random.random() * most_ms / 1000)


@step(rate_limit=RateLimit("uses", concurrent=AT_A_TIME))
async def use(most_ms: float) -> None:
    note("use")
    await pause(most_ms)
    note("used")


async def work(policy: str, thread: str, ms: float) -> str:
    key = f"{policy}/{thread}"
    note("begin", key)
    for number in range(3):
        await step.run(f"part{number}", pause, ms)
        await use(ms)
    note("end", key)
    return current_run().id


@app.post("/queue/{thread}")
@durable(concurrency_key="{thread}", on_conflict="queue")
async def queue(thread: str, nonce: str, ms: float = 20) -> dict[str, str]:
    return {"run": await work("queue", thread, ms)}


@app.post("/attach/{thread}")
@durable(concurrency_key="{thread}")
async def attach(thread: str, nonce: str, ms: float = 20) -> dict[str, str]:
    return {"run": await work("attach", thread, ms)}
