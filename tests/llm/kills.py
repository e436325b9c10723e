"""Runs that are ended at every entry of their journal, and must come to the same end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from durable_endpoints.llm.answers import ANSWER_MARK
from durable_endpoints.records import Entry, Kind
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider

Body = Callable[[], Awaitable[Any]]


def whole_answers(entries: list[Entry]) -> int:
    """Count the answers that are recorded from the first to the last byte."""
    found = 0
    for entry in entries:
        if entry.kind == Kind.STEP and entry.payload.startswith(ANSWER_MARK):
            found += b'"whole":true' in entry.payload.partition(b"\n")[0]
        elif entry.kind == Kind.STREAM_END and entry.key.endswith(" body"):
            found += 1
    return found


async def ended_at(seq: int, body: Body, provider: Provider) -> tuple[Any, int, int]:
    """End the process when entry `seq` is durable.

    Returns the result, how many answers were recorded then, how many were asked for after it.
    """
    async with world() as one:
        requests._BODY[:] = [body]
        started = await one.start(requests.play_body)
        run = one.engine.runs[started.id]
        async with asyncio.timeout(20):
            while run.durable_seq < seq and not run.ended:
                await run.progress()
        await one.crash()
        recorded = whole_answers(await one.entries(started.id))
        provider.forget()
        await one.boot()
        async with asyncio.timeout(20):
            ended = await one.ended_for_good(started.id)
            result = await ended.result()
        return result, recorded, len(provider.counted())


async def survives_every_kill(body: Body, provider: Provider) -> Any:
    """Return the result, the same whenever the process ends; no recorded answer is asked for."""
    provider.forget()
    async with world() as one:
        result, entries = await requests.run(one, body)
    whole = len(provider.counted())
    assert whole == whole_answers(entries)
    for seq in range(1, len(entries) - 1):
        found, recorded, after = await ended_at(seq, body, provider)
        where = f"ended at entry {seq} of {len(entries)}: {recorded} answers kept, {after} after"
        assert found == result, where
        assert after == whole - recorded, where
    return result
