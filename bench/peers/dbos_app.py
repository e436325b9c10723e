# mypy: disable-error-code="import-not-found,untyped-decorator"
"""The work on DBOS: workflows, steps and streams as its documentation shows them.

All settings are its defaults. BENCH_DIR is where the SQLite database goes, unless BENCH_POSTGRES
names a server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, SetWorkflowID
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bench.apps import work

SQLITE = f"sqlite:///{os.environ['BENCH_DIR']}/dbos.sqlite"
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ.get("BENCH_POSTGRES", SQLITE),
        "log_level": "WARNING",
    }
)


@DBOS.step()
async def one(number: int) -> dict[str, object]:
    return work.result(number)


@DBOS.workflow()
async def steps_workflow(count: int) -> dict[str, object]:
    return work.answer([await one(n) for n in range(count)])


@DBOS.workflow()
async def chat_workflow(count: int, pace_s: float) -> None:
    for number in range(count):
        if pace_s:
            await asyncio.sleep(pace_s)
        await DBOS.write_stream_async("tokens", work.token(number))
    await DBOS.close_stream_async("tokens")


@DBOS.step()
async def slow_one(job: int, number: int, ms: float) -> dict[str, object]:
    work.executed("began", job, number)
    await asyncio.sleep(work.step_seconds(job, number, ms))
    work.executed("ended", job, number)
    return work.result(number)


@DBOS.workflow()
async def job_workflow(job: int, count: int, ms: float) -> dict[str, object]:
    return work.answer([await slow_one(job, n, ms) for n in range(count)])


async def steps(request: Request) -> Response:
    return JSONResponse(await steps_workflow((await request.json())["steps"]))


async def tokens(asked: dict[str, Any]) -> AsyncIterator[str]:
    handle = await DBOS.start_workflow_async(
        chat_workflow, asked["tokens"], asked["pace_ms"] / 1000
    )
    async for token in DBOS.read_stream_async(handle.workflow_id, "tokens"):
        yield token


async def chat(request: Request) -> Response:
    return EventSourceResponse(tokens(await request.json()))


async def start_job(request: Request) -> Response:
    asked = await request.json()
    job = asked["job"]
    with SetWorkflowID(f"job-{job}"):
        await DBOS.start_workflow_async(job_workflow, job, asked["steps"], asked["step_ms"])
    return Response(status_code=202, headers={"location": f"/jobs/{job}"})


async def job_response(request: Request) -> Response:
    status = await DBOS.get_workflow_status_async(f"job-{request.path_params['job']}")
    if status is None:
        return Response(status_code=404)
    return JSONResponse(status.output) if status.status == "SUCCESS" else Response(status_code=202)


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    DBOS.launch()
    yield
    DBOS.destroy()


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/steps", steps, methods=["POST"]),
        Route("/chat", chat, methods=["POST"]),
        Route("/jobs", start_job, methods=["POST"]),
        Route("/jobs/{job:int}/response", job_response),
    ],
    lifespan=lifespan,
)
