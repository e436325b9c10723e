"""A request is cancelled from outside while its run is being undone: that goes on."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, Engine, durable, effect
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
