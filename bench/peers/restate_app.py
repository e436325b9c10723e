# mypy: disable-error-code="import-not-found,untyped-decorator"
"""The work on Restate: a service whose handlers journal every step in the Restate server.

Served by hypercorn as its documentation shows; `restate_launch` starts both.
"""

from __future__ import annotations

import asyncio
from typing import Any

import restate

from bench.apps import work

bench = restate.Service("Bench")


async def one(number: int) -> dict[str, object]:
    return work.result(number)


async def slow_one(job: int, number: int, ms: float) -> dict[str, object]:
    work.executed("began", job, number)
    await asyncio.sleep(work.step_seconds(job, number, ms))
    work.executed("ended", job, number)
    return work.result(number)


@bench.handler()
async def ready(_: restate.Context) -> str:
    return "ready"


@bench.handler()
async def steps(ctx: restate.Context, asked: dict[str, Any]) -> dict[str, object]:
    results = [await ctx.run_typed(f"step {n}", one, number=n) for n in range(asked["steps"])]
    return work.answer(results)


@bench.handler()
async def job(ctx: restate.Context, asked: dict[str, Any]) -> dict[str, object]:
    number, ms = asked["job"], asked["step_ms"]
    results = [
        await ctx.run_typed(f"step {n}", slow_one, job=number, number=n, ms=ms)
        for n in range(asked["steps"])
    ]
    return work.answer(results)


app = restate.app([bench])
