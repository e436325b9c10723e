"""The app without durability: the line that every contender is measured against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bench.apps import work

_jobs: dict[int, asyncio.Task[dict[str, object]]] = {}


async def one(number: int) -> dict[str, object]:
    return work.result(number)


async def steps(request: Request) -> Response:
    count = (await request.json())["steps"]
    return JSONResponse(work.answer([await one(n) for n in range(count)]))


async def tokens(count: int, pace_s: float) -> AsyncIterator[str]:
    for number in range(count):
        if pace_s:
            await asyncio.sleep(pace_s)
        yield work.token(number)


async def chat(request: Request) -> Response:
    asked = await request.json()
    return EventSourceResponse(tokens(asked["tokens"], asked["pace_ms"] / 1000))


async def slow_one(job: int, number: int, ms: float) -> dict[str, object]:
    work.executed("began", job, number)
    await asyncio.sleep(work.step_seconds(job, number, ms))
    work.executed("ended", job, number)
    return work.result(number)


async def run_job(job: int, count: int, step_ms: float) -> dict[str, object]:
    return work.answer([await slow_one(job, n, step_ms) for n in range(count)])


async def start_job(request: Request) -> Response:
    asked = await request.json()
    job = asked["job"]
    _jobs[job] = asyncio.create_task(run_job(job, asked["steps"], asked["step_ms"]))
    return Response(status_code=202, headers={"location": f"/jobs/{job}"})


async def job_response(request: Request) -> Response:
    task = _jobs.get(request.path_params["job"])
    if task is None:
        return Response(status_code=404)
    return JSONResponse(task.result()) if task.done() else Response(status_code=202)


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/steps", steps, methods=["POST"]),
        Route("/chat", chat, methods=["POST"]),
        Route("/jobs", start_job, methods=["POST"]),
        Route("/jobs/{job:int}/response", job_response),
    ]
)
