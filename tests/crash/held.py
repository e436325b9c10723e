"""A store that is held up, and what the guards do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from durable_endpoints import MemoryStore, step
from durable_endpoints.records import Frame


class HeldStore(MemoryStore):
    """A store whose commits wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.open_gate = asyncio.Event()
        self.waiting = asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        self.waiting.set()
        await self.open_gate.wait()
        return await super().append(batch)


@step
async def one(number: int) -> int:
    return number


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))
