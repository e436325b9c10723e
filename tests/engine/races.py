"""What the tests of races share: what was called outside, and waiting for what is to be seen."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.engine.hopping import HoppingWorld
from tests.engine.worlds import PATIENCE_S

# Less than the 15 s for which the engine waits for a run, more than a busy machine stands still.
PROMPT_S = 10.0

calls: dict[str, list[Any]] = {}


def note(what: str, value: Any = None) -> int:
    """Count a call; return how many there have been."""
    calls.setdefault(what, []).append(value)
    return len(calls[what])


async def until(condition: Any, patience_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.001)


async def ended(one: HoppingWorld, run_id: str, patience_s: float = PROMPT_S) -> Any:
    async with asyncio.timeout(patience_s):
        return await one.ended_for_good(run_id)
