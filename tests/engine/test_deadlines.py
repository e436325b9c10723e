"""A run's timeout, under the middleware: it ends the handler, not the undoing of what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from durable_endpoints import DurableMiddleware, Engine, durable, effect, wait_for_signal
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query
from durable_endpoints.testing import TestClock
from tests.engine.worlds import PATIENCE_S

calls: list[str] = []
late: list[asyncio.Event] = []  # set when the timeout is over
Reached = Callable[[], Awaitable[bool]]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()
    late[:] = [asyncio.Event()]


async def undo(what: str) -> None:
    calls.append(f"begin {what}")
    await late[0].wait()
    await asyncio.sleep(0.05)  # for the engine to see that it is over
    calls.append(f"undo {what}")


@effect(compensate=undo)
async def book(what: str) -> None:
    calls.append(f"book {what}")


async def until(reached: Reached) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await reached():
            await asyncio.sleep(0.001)


def timed_out(app: ASGIApp, engine: Engine, clock: TestClock, reached: Reached) -> dict[str, Any]:
    """Let the timeout be over when the run is where a test wants it; return how it ended."""

    async def main() -> dict[str, Any]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"prefer": "respond-async"}
            asked = asyncio.create_task(client.post("/trip", headers=headers))
            await until(reached)
            clock.advance(hours=1)
            late[0].set()
            place = (await asked).headers["location"]
            shown: dict[str, Any] = {}

            async def ended() -> bool:
                nonlocal shown
                shown = (await client.get(place)).json()
                return shown["status"] not in ("running", "suspended")

            await until(ended)
        await engine.close()
        return shown

    return asyncio.run(main())


def suspended(engine: Engine) -> Reached:
    async def reached() -> bool:
        return bool(engine.is_open and await engine.list(Query(("suspended",))))

    return reached


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("grace_s", [0, 60])
def test_what_is_undone_when_the_timeout_comes_is_undone_once(fails: bool, grace_s: float) -> None:
    clock = TestClock()
    engine = Engine(MemoryStore(), suspend_grace_s=grace_s, clock=clock)
    app = FastAPI()

    @app.post("/trip")
    @durable(timeout=3600)
    async def trip() -> None:
        await book("flight")
        await book("hotel")
        if fails:
            raise RuntimeError("no car")  # its timeout comes while it is undone
        await wait_for_signal("never")

    async def reached() -> bool:
        if fails:
            return "begin hotel" in calls
        return any(run.waits.open for run in engine.runs.values())

    app.add_middleware(DurableMiddleware, engine=engine)
    shown = timed_out(
        app, engine, clock, reached if fails or grace_s else suspended(engine)
    )  # fmt: skip
    assert shown["status"] == "failed", shown
    assert [call for call in calls if not call.startswith("begin")] == [
        "book flight", "book hotel", "undo hotel", "undo flight",
    ]  # fmt: skip
    assert calls.count("begin flight") == calls.count("begin hotel") == 1


class Slow:
    """A middleware that takes its time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.15)
        await self._app(scope, receive, send)


def test_a_timeout_that_is_over_finds_a_woken_run_wherever_it_is() -> None:
    """Also on its way to its endpoint, where nothing yet can tell that it failed."""
    clock = TestClock()
    engine = Engine(MemoryStore(), suspend_grace_s=0, clock=clock)
    app = FastAPI()

    @app.post("/trip")
    @durable(timeout=3600)
    async def trip() -> None:
        await book("flight")
        await wait_for_signal("never")

    app.add_middleware(Slow)
    app.add_middleware(DurableMiddleware, engine=engine)
    shown = timed_out(app, engine, clock, suspended(engine))
    assert (shown["status"], shown["attempts"]) == ("failed", 1), shown
    assert calls == ["book flight", "begin flight", "undo flight"]
