"""Runs that wait, for the figures of suspended runs. BENCH_DIR is where the database goes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, Engine, durable, sleep, wait_for_signal
from durable_endpoints.engine.functions import start
from durable_endpoints.stores.open import open_store

DATABASE = Path(os.environ.get("BENCH_DIR", ".")) / "durable.db"
AT_ONCE = 200


@durable
async def asks() -> Any:
    return await wait_for_signal("go")


@durable
async def naps(seconds: float) -> str:
    await sleep(seconds)
    return "awake"


async def begin(request: Request) -> Response:
    """Begin runs that wait for a signal, some at a time, and let them leave memory."""
    asked = await request.json()
    for _ in range(0, asked["runs"], AT_ONCE):
        await asyncio.gather(*(start(engine, asks) for _ in range(AT_ONCE)))
        while len(engine.runs) > AT_ONCE:
            await asyncio.sleep(0.001)
    return JSONResponse({"in memory": len(engine.runs)})


async def nap(request: Request) -> Response:
    """Begin runs that sleep."""
    asked = await request.json()
    runs = [await start(engine, naps, asked["seconds"]) for _ in range(asked["runs"])]
    return JSONResponse({"runs": [run.id for run in runs]})


async def ready(_: Request) -> Response:
    return JSONResponse({"in memory": len(engine.runs)})


engine = Engine(open_store(f"sqlite:///{DATABASE}"), suspend_grace_s=0)
app = Starlette(
    routes=[
        Route("/ready", ready), Route("/begin", begin, methods=["POST"]),
        Route("/nap", nap, methods=["POST"]),
    ],
    middleware=[Middleware(DurableMiddleware, engine=engine)],
)  # fmt: skip
