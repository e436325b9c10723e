"""A run's timeout, under the middleware: it ends the handler, not the undoing of what was done."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from durable_endpoints import DurableMiddleware, Engine, durable, effect, wait_for_signal
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import PATIENCE_S

calls: list[str] = []


async def undo(what: str) -> None:
    calls.append(f"begin {what}")
    await asyncio.sleep(0.2)
    calls.append(f"undo {what}")


@effect(compensate=undo)
async def book(what: str) -> None:
    calls.append(f"book {what}")


def ended(client: TestClient, place: str) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    while (shown := client.get(place).json())["status"] in ("running", "suspended"):
        assert time.monotonic() < until, shown
        time.sleep(0.01)
    found: dict[str, Any] = shown
    return found


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("grace_s", [0, 60])
def test_what_is_undone_when_the_timeout_comes_is_undone_once(fails: bool, grace_s: float) -> None:
    calls.clear()
    app = FastAPI()

    @app.post("/trip")
    @durable(timeout=0.4)
    async def trip() -> None:
        await book("flight")
        await book("hotel")
        if fails:
            await asyncio.sleep(0.3)  # its timeout comes while it is undone
            raise RuntimeError("no car")
        await wait_for_signal("never")

    app.add_middleware(
        DurableMiddleware, engine=Engine(MemoryStore(), suspend_grace_s=grace_s)
    )  # fmt: skip
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/trip", headers={"prefer": "respond-async"})
        shown = ended(client, answer.headers["location"])
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
    calls.clear()
    app = FastAPI()

    @app.post("/trip")
    @durable(timeout=0.3)
    async def trip() -> None:
        await book("flight")
        await wait_for_signal("never")

    app.add_middleware(Slow)
    app.add_middleware(DurableMiddleware, engine=Engine(MemoryStore(), suspend_grace_s=0))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/trip", headers={"prefer": "respond-async"})
        shown = ended(client, answer.headers["location"])
    assert (shown["status"], shown["attempts"]) == ("failed", 1), shown
    assert calls == ["book flight", "begin flight", "undo flight"]
