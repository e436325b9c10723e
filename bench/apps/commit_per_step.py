"""Durability as most people write it first: one SQLite commit for every step and every token.

Nothing is clever here and nothing is slow on purpose: aiosqlite, WAL, `synchronous=FULL`, one
connection, one insert and one commit a step. BENCH_DIR is where the database goes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosqlite
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bench.apps import work

_SCHEMA = """
create table if not exists runs (run integer primary key, input text not null, response text);
create table if not exists steps (
  run integer not null, number integer not null, result text not null, primary key (run, number)
) without rowid;
"""
_jobs: dict[int, asyncio.Task[None]] = {}


class Journal:
    """A run and its steps, each written by a commit of its own."""

    db: aiosqlite.Connection

    async def open(self) -> None:
        self.db = await aiosqlite.connect(f"{os.environ['BENCH_DIR']}/steps.db")
        await self.db.execute("pragma journal_mode = wal")
        await self.db.execute("pragma synchronous = full")
        await self.db.executescript(_SCHEMA)

    async def begin(self, asked: dict[str, object], run: int | None = None) -> int:
        sql = "insert into runs (run, input) values (?, ?)"
        cursor = await self.db.execute(sql, (run, json.dumps(asked)))
        await self.db.commit()
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    async def record(self, run: int, number: int, result: object) -> None:
        await self.db.execute(
            "insert into steps values (?, ?, ?)", (run, number, json.dumps(result))
        )
        await self.db.commit()

    async def end(self, run: int, response: str) -> None:
        await self.db.execute("update runs set response = ? where run = ?", (response, run))
        await self.db.commit()

    async def recorded(self, run: int) -> list[dict[str, object]]:
        sql = "select result from steps where run = ? order by number"
        return [json.loads(row[0]) async for row in await self.db.execute(sql, (run,))]

    async def unfinished(self) -> list[tuple[int, dict[str, object]]]:
        rows = await self.db.execute("select run, input from runs where response is null")
        return [(run, json.loads(asked)) async for run, asked in rows]

    async def response(self, run: int) -> tuple[str | None] | None:
        rows = await self.db.execute("select response from runs where run = ?", (run,))
        return await rows.fetchone()  # type: ignore[return-value]


journal = Journal()


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


async def steps(request: Request) -> Response:
    asked = await request.json()
    run = await journal.begin(asked)
    results = []
    for number in range(asked["steps"]):
        result = work.result(number)
        await journal.record(run, number, result)
        results.append(result)
    response = compact(work.answer(results))
    await journal.end(run, response)
    return Response(response, media_type="application/json")


async def tokens(asked: dict[str, float]) -> AsyncIterator[str]:
    run = await journal.begin(dict(asked))
    for number in range(int(asked["tokens"])):
        if asked["pace_ms"]:
            await asyncio.sleep(asked["pace_ms"] / 1000)
        token = work.token(number)
        await journal.record(run, number, token)
        yield token
    await journal.end(run, "complete")


async def chat(request: Request) -> Response:
    return EventSourceResponse(tokens(await request.json()))


async def run_job(job: int, count: int, step_ms: float) -> None:
    results = await journal.recorded(job)
    for number in range(len(results), count):
        work.executed("began", job, number)
        await asyncio.sleep(work.step_seconds(job, number, step_ms))
        work.executed("ended", job, number)
        await journal.record(job, number, work.result(number))
        results.append(work.result(number))
    await journal.end(job, compact(work.answer(results)))


def start(asked: dict[str, object]) -> None:
    job, count, step_ms = int(str(asked["job"])), int(str(asked["steps"])), asked["step_ms"]
    _jobs[job] = asyncio.create_task(run_job(job, count, float(str(step_ms))))


async def start_job(request: Request) -> Response:
    asked = await request.json()
    job = await journal.begin(asked, asked["job"])
    start(asked)
    return Response(status_code=202, headers={"location": f"/jobs/{job}"})


async def job_response(request: Request) -> Response:
    row = await journal.response(request.path_params["job"])
    if row is None:
        return Response(status_code=404)
    if row[0] is None:
        return Response(status_code=202)
    return Response(row[0], media_type="application/json")


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await journal.open()
    for _run, asked in await journal.unfinished():
        if "job" in asked:
            start(asked)
    yield
    await journal.db.close()


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
