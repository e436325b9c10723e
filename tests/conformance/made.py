"""Runs, frames and waits to put into a store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.stores.protocol import Store

Scenario: TypeAlias = Callable[[Store], Awaitable[None]]
Check: TypeAlias = Callable[[Scenario], None]


def played(store: Store, scenario: Scenario) -> None:
    """Play a scenario on a store that is opened for it and closed after it."""

    async def main() -> None:
        await store.open()
        try:
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(main())


def record(run_id: str = "r1", **more: Any) -> RunRecord:
    return RunRecord(run_id, "POST /chat", "running", 1, 1, **more)


def frame(
    run_id: str = "r1", first: int = 0, count: int = 1, *, offset: int = 0, events: int = 0,
    epoch: int = 1, status: Status = "running", opening: RunRecord | None = None,
    data: bytes = b"x", **more: Any,
) -> Frame:  # fmt: skip
    return Frame(run_id, epoch, first, count, offset, events, 7, data, 2, status, opening, **more)


def opening(run_id: str = "r1", **more: Any) -> Frame:
    """Return the first frame of a run; what the run's row has goes into `record`."""
    return frame(run_id, opening=record(run_id), **more)


def wait(run_id: str = "r1", ident: str = "w1", name: str = "paid", **more: Any) -> WaitRecord:
    return WaitRecord(run_id, ident, more.pop("kind", "signal"), name, 1, **more)
