"""The same app made durable: one middleware, `@durable` on the route, `@step` on the work.

BENCH_DIR is where the database goes, unless BENCH_POSTGRES names a server; BENCH_MODE is
"optimistic" or "strict".
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bench.apps import work
from durable_endpoints import DurableMiddleware, durable, step


@step
async def one(number: int) -> dict[str, object]:
    return work.result(number)


@durable
async def steps(request: Request) -> Response:
    count = (await request.json())["steps"]
    return JSONResponse(work.answer([await one(n) for n in range(count)]))


@step
async def tokens(count: int, pace_s: float) -> AsyncIterator[str]:
    for number in range(count):
        if pace_s:
            await asyncio.sleep(pace_s)
        yield work.token(number)


@durable
async def chat(request: Request) -> Response:
    asked = await request.json()
    return EventSourceResponse(tokens(asked["tokens"], asked["pace_ms"] / 1000))


@step
async def slow_one(job: int, number: int, ms: float) -> dict[str, object]:
    work.executed("began", job, number)
    await asyncio.sleep(work.step_seconds(job, number, ms))
    work.executed("ended", job, number)
    return work.result(number)


@durable
async def jobs(request: Request) -> Response:
    asked = await request.json()
    job, step_ms = asked["job"], asked["step_ms"]
    results = [await slow_one(job, n, step_ms) for n in range(asked["steps"])]
    return JSONResponse(work.answer(results))


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


SQLITE = f"sqlite:///{os.environ['BENCH_DIR']}/durable.db"
app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/steps", steps, methods=["POST"]),
        Route("/chat", chat, methods=["POST"]),
        Route("/jobs", jobs, methods=["POST"]),
    ],
    middleware=[
        Middleware(
            DurableMiddleware,
            store=os.environ.get("BENCH_POSTGRES", SQLITE),
            mode="strict" if os.environ.get("BENCH_MODE") == "strict" else "optimistic",
        )
    ],
)
