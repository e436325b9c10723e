"""Runs that are long, for the scale figures: many steps, a crash behind many steps.

BENCH_DIR is where the database goes.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench.apps import ours
from durable_endpoints import DurableMiddleware, durable, step

WINDOW = 500  # steps looked at around each mark


@durable
async def long(request: Request) -> Response:
    """Time the steps around each mark, from inside the handler: what the handler waits for."""
    asked = await request.json()
    taken = []
    for number in range(asked["steps"]):
        began = time.perf_counter_ns()
        await ours.one(number)
        taken.append(time.perf_counter_ns() - began)
    around = {}
    for mark in asked["marks"]:
        low = max(0, mark - WINDOW // 2)
        window = taken[low : low + min(WINDOW, 2 * mark)]
        around[str(mark)] = {
            "median_us": statistics.median(window) / 1000,
            "mean_us": statistics.fmean(window) / 1000,
        }
    return JSONResponse(around)


async def hold(entered_ns: int) -> str:
    """Wait to be killed; the second time, say when the replay had come so far."""
    first, second = Path(os.environ["BENCH_DIR"]) / "held", Path(os.environ["BENCH_DIR"]) / "again"
    if not first.exists():
        first.touch()
        await asyncio.Event().wait()
    second.with_suffix(".part").write_text(f"{LOADED_NS} {entered_ns} {time.monotonic_ns()}")
    second.with_suffix(".part").rename(second)
    return "replayed"


@durable
async def held(request: Request) -> Response:
    entered_ns = time.monotonic_ns()
    for number in range((await request.json())["steps"]):
        await ours.one(number)
    return JSONResponse(await step.run("hold", lambda: hold(entered_ns)))


app = Starlette(
    routes=[
        Route("/ready", ours.ready),
        Route("/steps", ours.steps, methods=["POST"]),
        Route("/chat", ours.chat, methods=["POST"]),
        Route("/long", long, methods=["POST"]),
        Route("/held", held, methods=["POST"]),
    ],
    middleware=[
        Middleware(DurableMiddleware, store=f"sqlite:///{os.environ['BENCH_DIR']}/durable.db")
    ],
)
LOADED_NS = time.monotonic_ns()  # from here on it is the server that starts, not Python
