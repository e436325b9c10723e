"""An event reaches every run that can take it, whatever is with another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, durable, wait_for_signal
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.wait import Receipt
from durable_endpoints.errors import Overloaded
from durable_endpoints.stores.memory import MemoryStore
from tests.surface.wire import is_problem

PATIENCE_S = 10


@durable
async def waits() -> Any:
    return await wait_for_signal("paid", match={"order": 7})


class House:
    """Three suspended runs that wait for one event, the oldest first; a client."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.engine = Engine(self.store, suspend_grace_s=0)
        app = FastAPI()
        app.post("/waits")(waits)
        app.add_middleware(DurableMiddleware, engine=self.engine)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self.runs: list[str] = []

    async def fill(self) -> None:
        for _ in range(3):
            answer = await self.http.post("/waits", headers={"prefer": "respond-async"})
            self.runs.append(answer.headers["durable-run-id"])
        while self.engine.runs:
            await asyncio.sleep(0.001)
        self.engine.idle.clear()
        self.runs.sort()

    async def pay(self, **headers: str) -> httpx.Response:
        return await self.http.post("/_durable/events/paid", json={"order": 7}, headers=headers)


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with asyncio.timeout(PATIENCE_S):
        one = House()
        async with one.http:
            await one.fill()
            yield one
        await one.engine.close()


def test_i20_a_damaged_run_keeps_no_event_from_others(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with house() as one:
            damaged = one.runs[1]
            frames = one.store._frames[damaged]
            frames[0] = replace(frames[0], data=bytes(len(frames[0].data)))
            answer = await one.pay()
            assert answer.status_code == 202, answer.text
            assert answer.json() == {"runs": [one.runs[0], one.runs[2]]}
            assert f"run {damaged} is not reached by event 'paid'" in caplog.text
            is_problem(await one.pay(), 404, "nobody-waits")

    asyncio.run(main())


@pytest.mark.parametrize("gone", [False, True])
def test_i16_who_sends_again_what_a_run_could_not_take_reaches_that_one(
    monkeypatch: pytest.MonkeyPatch, *, gone: bool
) -> None:
    async def main() -> None:
        async with house() as one:
            slow, signal = one.runs[1], one.engine.signal
            given: list[str] = []

            async def give(run: LiveRun, *args: Any, **how: Any) -> Receipt:
                given.append(run.id)
                if run.id == slow:
                    raise Overloaded("the run is being taken up again; try again shortly")
                return await signal(run, *args, **how)

            monkeypatch.setattr(one.engine, "signal", give)
            answer = await one.pay(**{"webhook-id": "e"})
            assert "taken up again" in is_problem(answer, 503, "overloaded")["detail"]
            assert answer.headers["retry-after"] == "1"
            assert given == one.runs
            monkeypatch.undo()
            if gone:
                await one.engine.cancel(await one.engine.observe(slow))
            answer = await one.pay(**{"webhook-id": "e"})
            assert answer.status_code == 202, answer.text
            reached = [run_id for run_id in one.runs if not gone or run_id != slow]
            assert sorted(answer.json()["runs"]) == reached
            again = await one.pay(**{"webhook-id": "e"})
            assert (again.status_code, again.json()) == (200, answer.json())

    asyncio.run(main())
