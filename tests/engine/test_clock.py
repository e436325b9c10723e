"""The clock for tests: days pass in milliseconds, for runs in memory and for suspended ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from durable_endpoints import (
    DurableMiddleware,
    Engine,
    Retry,
    RetryAfter,
    SignalTimeout,
    current_run,
    durable,
    now,
    sleep,
    sleep_until,
    step,
    wait_for_signal,
)
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.open import open_store
from durable_endpoints.stores.protocol import Query, Store
from durable_endpoints.testing import TestClock
from tests.engine.hopping import HoppingStore, HoppingWorld, play
from tests.engine.worlds import PATIENCE_S

calls: dict[str, list[Any]] = {}
GRACES = pytest.mark.parametrize("grace_s", [0, 60], ids=["suspended", "in memory"])
# Real time that days may take, and that may go by between two looks at the clock: a machine may
# be busy. A clock that is skipped has patience for as long, or it goes on without who is slow.
QUICK_S = PATIENCE_S
LATE = timedelta(seconds=PATIENCE_S)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


def note(what: str, value: Any = None) -> int:
    calls.setdefault(what, []).append(value)
    return len(calls[what])


async def status(one: HoppingWorld, run_id: str) -> str:
    record = await one.store.get(run_id)
    assert record is not None
    return record.status


@durable
async def reminds() -> list[str]:
    times = [now()]
    for days in (1, 30, 0.5):
        await sleep(timedelta(days=days))
        times.append(now())
    return [time.isoformat() for time in times]


@GRACES
def test_days_pass_in_milliseconds_and_timers_fire_in_order(grace_s: float) -> None:
    clock = TestClock()

    async def scenario(one: HoppingWorld) -> None:
        began = time.monotonic()
        run = await one.start(reminds)
        await clock.skip(days=30, patience=PATIENCE_S)
        assert await status(one, run.id) in ("running", "suspended")
        await clock.skip(days=2, patience=PATIENCE_S)
        took = time.monotonic() - began
        times = [datetime.fromisoformat(t) for t in await (await one.ended(run.id)).result()]
        waited = [later - earlier for earlier, later in pairwise(times)]
        for found, wanted in zip(waited, (1, 30, 0.5), strict=True):
            assert timedelta() <= found - timedelta(days=wanted) < LATE
        assert took < QUICK_S

    play(scenario, grace_s=grace_s, clock=clock)


@GRACES
def test_nothing_is_early(grace_s: float) -> None:
    clock = TestClock()

    @durable
    async def naps() -> None:
        await sleep(3600)

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(naps)
        await clock.skip(seconds=3600 - 60, patience=PATIENCE_S)
        assert await status(one, run.id) in ("running", "suspended")
        await clock.skip(seconds=60.1, patience=PATIENCE_S)
        assert (await one.ended(run.id)).status == "completed"

    play(scenario, grace_s=grace_s, clock=clock)


@GRACES
def test_a_wait_times_out(grace_s: float) -> None:
    clock = TestClock()

    @durable
    async def asks() -> str:
        try:
            await wait_for_signal("go", timeout=timedelta(days=3))
        except SignalTimeout:
            return "too late"
        return "in time"

    async def scenario(one: HoppingWorld) -> None:
        late, early = await one.start(asks), await one.start(asks)
        await clock.skip(days=2.9, patience=PATIENCE_S)
        await early.signal("go")
        await clock.skip(days=0.2, patience=PATIENCE_S)
        assert await (await one.ended(late.id)).result() == "too late"
        assert await (await one.ended(early.id)).result() == "in time"

    play(scenario, grace_s=grace_s, clock=clock)


@GRACES
def test_waits_between_attempts_are_skipped(grace_s: float) -> None:
    clock = TestClock()

    @step(retry=Retry(attempts=4, initial=3600, factor=2, maximum=86_400, jitter=0))
    async def flaky() -> str:
        if note("flaky", clock.now()) < 4:
            raise RetryAfter(7200) if len(calls["flaky"]) == 1 else ConnectionError("gone")
        return "done"

    @durable
    async def handler() -> str:
        return await flaky()

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await clock.skip(hours=10, patience=PATIENCE_S)
        assert await (await one.ended(run.id)).result() == "done"
        waits = [b - a for a, b in zip(calls["flaky"], calls["flaky"][1:], strict=False)]
        for found, hours in zip(waits, (2, 2, 4), strict=True):
            assert timedelta() <= found - timedelta(hours=hours) < LATE

    play(scenario, grace_s=grace_s, clock=clock)


class JustLeft(HoppingStore):
    """A run is suspended during the second look for due ones; its commit takes a while."""

    def __init__(self) -> None:
        super().__init__(lambda _: (0, 0))
        self.run: LiveRun | None = None
        self.looks = 0
        self.go = asyncio.Event()
        self.go.set()

    async def list(self, query: Query) -> list[RunRecord]:
        rows = await super().list(query)
        run = self.run
        if query.due_ms is not None and run is not None and run.waits.open:
            self.looks += 1
            if self.looks == 2:
                self.go.clear()
                while not run.resting:
                    await asyncio.sleep(0)
                asyncio.get_running_loop().call_later(0.1, self.go.set)
        return rows

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        await self.go.wait()
        return await super().append(batch)


def test_a_run_that_is_just_being_suspended_is_not_skipped() -> None:
    clock, store = TestClock(), JustLeft()

    @durable
    async def handler() -> str:
        await sleep(7200)
        note("woken", clock.now())
        return "done"

    async def scenario(one: HoppingWorld) -> None:
        began = clock.now()
        run = await one.start(handler)
        store.run = one.engine.runs[run.id]
        await clock.skip(hours=10, patience=PATIENCE_S)
        assert store.looks >= 2
        assert await (await one.ended(run.id)).result() == "done"
        (woken,) = calls["woken"]
        assert woken - began - timedelta(hours=2) < LATE

    play(scenario, store, grace_s=0.2, clock=clock)


@GRACES
def test_a_run_is_failed_by_its_timeout(grace_s: float) -> None:
    clock = TestClock()

    @durable(timeout=timedelta(days=1))
    async def handler() -> None:
        await sleep(timedelta(days=2))

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(handler)
        await clock.skip(hours=23, patience=PATIENCE_S)
        assert await status(one, run.id) in ("running", "suspended")
        await clock.skip(hours=2, patience=PATIENCE_S)
        assert (await one.ended(run.id)).status == "failed"

    play(scenario, grace_s=grace_s, clock=clock)


def test_parents_and_children() -> None:
    clock = TestClock()

    @durable
    async def child(days: float) -> float:
        await sleep(timedelta(days=days))
        return days

    @durable
    async def parent() -> list[float]:
        children = [await current_run().spawn(child, days) for days in (3, 1, 2)]
        return [await one for one in children]

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(parent)
        began = time.monotonic()
        await clock.skip(days=4, patience=PATIENCE_S)
        assert await (await one.ended(run.id)).result() == [3, 1, 2]
        assert time.monotonic() - began < QUICK_S

    play(scenario, clock=clock)


def test_the_clock_outlives_the_process() -> None:
    clock = TestClock(datetime(2030, 1, 1, tzinfo=UTC))

    @durable
    async def naps() -> str:
        await sleep_until(datetime(2030, 2, 1, tzinfo=UTC))
        return now().strftime("%Y-%m-%d")

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(naps)
        await clock.skip(days=10, patience=PATIENCE_S)
        await one.crash()
        clock.advance(days=30)
        await one.boot()
        assert await (await one.ended(run.id)).result() == "2030-02-10"

    play(scenario, clock=clock)


@pytest.mark.parametrize("where", ["memory:", "sqlite"])
def test_under_the_middleware_in_a_thread(where: str, tmp_path: Path) -> None:
    store: Store = open_store("memory:" if where == "memory:" else f"sqlite:///{tmp_path}/a.db")
    clock = TestClock()
    app = FastAPI()

    @app.post("/remind")
    @durable
    async def remind() -> dict[str, str]:
        began = now()
        await sleep(timedelta(days=7))
        return {"after": str((now() - began).days)}

    app.add_middleware(
        DurableMiddleware, engine=Engine(store, clock=clock, suspend_grace_s=0)
    )  # fmt: skip
    with TestClient(app) as client:
        answer = client.post("/remind", headers={"prefer": "respond-async"})
        place = answer.headers["location"]
        until = time.monotonic() + PATIENCE_S
        while client.get(place).json()["status"] != "suspended":
            assert time.monotonic() < until
        clock.advance(days=7)
        while client.get(place).json()["status"] != "completed":
            assert time.monotonic() < until
        assert client.get(f"{place}/response").json() == {"after": "7"}


def test_a_clock_goes_forwards_only() -> None:
    clock = TestClock()
    with pytest.raises(ValueError, match="forwards"):
        clock.advance(timedelta(days=-1))
    with pytest.raises(ValueError, match="time zone"):
        TestClock(datetime(2030, 1, 1))  # noqa: DTZ001


def test_a_handler_at_other_work_is_not_waited_for_for_ever() -> None:
    clock = TestClock()

    @durable
    async def busy() -> str:
        await asyncio.sleep(60)
        return "?"

    async def scenario(one: HoppingWorld) -> None:
        run = await one.start(busy)
        began = time.monotonic()
        await clock.skip(days=1, patience=0.1)
        assert time.monotonic() - began < QUICK_S
        await run.cancel()

    play(scenario, MemoryStore(), clock=clock)
