"""A request is cancelled from outside while its run ends: that goes on without it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, durable, effect
from durable_endpoints.records import Frame
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import PATIENCE_S


def test_i16_a_run_whose_request_is_cancelled_while_it_is_undone_is_taken_up() -> None:
    calls: list[str] = []

    async def undo() -> None:
        calls.append("undo")
        if calls.count("undo") == 1:
            await asyncio.Event().wait()  # until somebody outside has had enough
        calls.append("undone")

    @effect(compensate=undo)
    async def book() -> None:
        calls.append("book")

    engine = Engine(MemoryStore())
    app = FastAPI()

    @app.post("/trip")
    @durable
    async def trip() -> None:
        await book()
        raise RuntimeError("no car")

    app.add_middleware(DurableMiddleware, engine=engine)

    async def main() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            asking = asyncio.create_task(client.post("/trip"))
            while "undo" not in calls:
                await asyncio.sleep(0.001)
            (run_id,) = engine.runs
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            shown = {"status": "running"}
            while shown["status"] == "running":
                await asyncio.sleep(0.01)
                shown = (await client.get(f"/_durable/runs/{run_id}")).json()
            assert shown["status"] == "failed"
        await engine.close()

    asyncio.run(main())
    assert calls == ["book", "undo", "undo", "undone"]


class SlowEnd(MemoryStore):
    """The end of a run waits there until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        if any(frame.status == "completed" for frame in batch):
            self.waiting.set()
            await self.go.wait()
        return await super().append(batch)


def test_a_run_whose_request_is_cancelled_at_its_last_commit_leaves_memory() -> None:
    async def main() -> None:
        store = SlowEnd()
        engine = Engine(store)
        app = FastAPI()

        @app.post("/quick")
        @durable
        async def quick() -> str:
            return "done"

        app.add_middleware(DurableMiddleware, engine=engine)
        transport = httpx.ASGITransport(app=app)
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            asking = asyncio.create_task(client.post("/quick"))
            await store.waiting.wait()
            (run_id,) = engine.runs
            asking.cancel()
            await asyncio.wait([asking])  # though the commit goes on
            assert asking.cancelled()
            store.go.set()
            while engine.runs:
                await asyncio.sleep(0.001)
            shown = (await client.get(f"/_durable/runs/{run_id}")).json()
            assert shown["status"] == "completed"
        await engine.close()

    asyncio.run(main())
