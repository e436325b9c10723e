# mypy: disable-error-code="import-not-found,untyped-decorator"
"""The work on Absurd: tasks in PostgreSQL, a worker inside the web process, its Python SDK.

BENCH_MODE "defaults" keeps the SDK's intervals, "tuned" polls every 5 ms and takes a killed
worker's tasks over after 5 s. Concurrency is 100 in both, because the default is one task at a
time. BENCH_POSTGRES is the server's address.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from absurd_sdk import AsyncAbsurd, AsyncTaskContext
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bench.apps import work

URL, QUEUE = os.environ["BENCH_POSTGRES"], "bench"
TUNED = os.environ["BENCH_MODE"] == "tuned"
WORKER: dict[str, Any] = {"poll_interval": 0.005, "claim_timeout": 5} if TUNED else {}

worker = AsyncAbsurd(URL, QUEUE)
client = AsyncAbsurd(URL, QUEUE)


@worker.register_task("steps")
async def steps_task(asked: Any, ctx: AsyncTaskContext) -> Any:
    async def one(number: int) -> dict[str, object]:
        return work.result(number)

    count = range(asked["steps"])
    return work.answer([await ctx.step(f"step-{n}", lambda n=n: one(n)) for n in count])


@worker.register_task("job")
async def job_task(asked: Any, ctx: AsyncTaskContext) -> Any:
    job, ms = asked["job"], asked["step_ms"]

    async def one(number: int) -> dict[str, object]:
        work.executed("began", job, number)
        await asyncio.sleep(work.step_seconds(job, number, ms))
        work.executed("ended", job, number)
        return work.result(number)

    count = range(asked["steps"])
    return work.answer([await ctx.step(f"step-{n}", lambda n=n: one(n)) for n in count])


async def steps(request: Request) -> Response:
    task_id = (await client.spawn("steps", await request.json(), queue=QUEUE))["task_id"]
    if not TUNED:
        return JSONResponse((await client.await_task_result(task_id)).result)
    while True:  # the SDK's own wait begins at 50 ms and doubles
        snapshot = await client.fetch_task_result(task_id)
        if snapshot is not None and snapshot.state == "completed":
            return JSONResponse(snapshot.result)
        await asyncio.sleep(0.005)


async def start_job(request: Request) -> Response:
    spawned = await client.spawn("job", await request.json(), queue=QUEUE)
    return Response(status_code=202, headers={"location": f"/jobs/{spawned['task_id']}"})


async def job_response(request: Request) -> Response:
    snapshot = await client.fetch_task_result(request.path_params["task"])
    if snapshot is None:
        return Response(status_code=404)
    done = snapshot.state == "completed"
    return JSONResponse(snapshot.result) if done else Response(status_code=202)


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await client.create_queue(QUEUE)
    working = asyncio.create_task(worker.start_worker(concurrency=100, **WORKER))
    yield
    worker.stop_worker()
    await working


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/steps", steps, methods=["POST"]),
        Route("/jobs", start_job, methods=["POST"]),
        Route("/jobs/{task}/response", job_response),
    ],
    lifespan=lifespan,
)
