"""Counting and finding runs through the store's lists alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from durable_endpoints.clock import SystemClock
from durable_endpoints.console.reading import DIGESTS_MAX, Digests
from durable_endpoints.console.sampler import Sampler
from durable_endpoints.console.search import PAGE_ROWS, SCAN_ROWS_MAX, Asked, floor_id, search
from durable_endpoints.console.tally import Tally
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.ids import RUN_ID, new_run_id
from durable_endpoints.records import Frame, Kind, RunRecord, Status
from durable_endpoints.stores.memory import MemoryStore


class MovingClock(SystemClock):
    """A clock that only a test sets on: looks are due by it, however long one of them takes."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ms = 0
        self._begun_ms = super().now_ms()

    def now_ms(self) -> int:
        return self._begun_ms + self.ahead_ms


def frame(at_ms: int, status: Status = "completed", error: str | None = None) -> Frame:
    run = RunRecord(new_run_id(at_ms), "POST /ask", "running", at_ms, at_ms)
    return Frame(run.run_id, 1, 0, 0, 0, 0, 0, b"", at_ms, status, opening=run, error=error)


def begin(engine: Engine) -> LiveRun:
    return engine.begin("POST /ask", version="1", args=b"{}", payload=b"")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_counts_follow_what_happens() -> None:
    async def check() -> None:
        clock = MovingClock()
        engine = Engine(MemoryStore(), clock=clock)
        await engine.open()
        tally = Tally(engine)
        working = [begin(engine) for _ in range(3)]
        await working[-1].durable(0)
        await tally.look(5)
        assert (tally.count("running"), tally.count("completed")) == (3, 0)
        await working[0].durable(working[0].end(Kind.COMPLETED, "completed", None))
        await working[1].durable(working[1].end(Kind.FAILED, "failed", "ValueError: no"))
        engine.forget(working[0])
        engine.forget(working[1])
        await tally.look(5)  # too soon: what was seen stands
        assert tally.count("completed") == 0
        clock.ahead_ms += 1500
        await tally.look(5)
        counts = [tally.count(s) for s in ("running", "completed", "failed")]
        assert counts == [1, 1, 1]
        clock.ahead_ms += 1500
        await tally.look(5)
        assert tally.count("completed") == 1
        assert sum(tally.series("began")) == 3
        assert sum(tally.series("failed")) == 1
        assert tally.names == {"POST /ask"}
        clock.ahead_ms += 25 * 3_600_000
        await tally.look(5)
        assert (tally.count("running"), tally.count("completed")) == (1, 0)
        await engine.close()

    run(check())


def test_a_deleted_run_is_no_longer_followed() -> None:
    async def check() -> None:
        clock = MovingClock()
        engine = Engine(MemoryStore(), clock=clock)
        await engine.open()
        tally = Tally(engine)
        gone = begin(engine)
        await gone.durable(0)
        await tally.look(5)
        await engine.store.delete(gone.id)
        clock.ahead_ms += 1500
        await tally.look(5)
        assert [tally.count(s) for s in ("running", "completed", "failed")] == [0, 0, 0]
        await engine.close()

    run(check())


def test_a_long_search_stops_and_says_where() -> None:
    async def check() -> None:
        store = MemoryStore()
        now_ms = SystemClock().now_ms()
        count = SCAN_ROWS_MAX + 500
        frames = [
            frame(now_ms - count + n, "failed" if n < 3 else "completed", f"E{n}")
            for n in range(count)
        ]
        await store.append(frames)
        first = await search(store, Asked(error="e1."), now_ms)
        assert first.runs == []
        assert first.searched_to is not None
        nothing = await search(store, Asked(error="E1.", before=first.older or ""), now_ms)
        assert nothing.older is None
        found = await search(store, Asked(status="failed", error="e1"), now_ms)
        assert [row.error for row in found.runs] == ["E1"]
        page = await search(store, Asked(), now_ms)
        assert len(page.runs) == PAGE_ROWS
        assert page.older == page.runs[-1].run_id
        recent = await search(store, Asked(age="5m", q="post"), now_ms)
        assert len(recent.runs) == PAGE_ROWS

    run(check())


def test_the_smallest_id_of_a_moment() -> None:
    assert RUN_ID.fullmatch(floor_id(0))
    assert floor_id(-5) == floor_id(0)
    now_ms = SystemClock().now_ms()
    assert floor_id(now_ms) <= new_run_id(now_ms) < floor_id(now_ms + 1)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [("POST*", True), ("*ask", True), ("p*t*/a*k", True), ("*", True),
     ("*asks", False), ("get*", False), ("p*x*k", False), ("post /ask*post /ask", False)],
)  # fmt: skip
def test_patterns_of_names(pattern: str, fits: bool) -> None:
    row = RunRecord(new_run_id(0), "POST /ask", "running", 0, 0)
    assert Asked(name=pattern).fits(row) == fits


def test_digests_are_kept_for_a_few_runs_only() -> None:
    async def check() -> None:
        engine = Engine(MemoryStore())
        await engine.open()
        digests = Digests(engine.store)
        runs = [begin(engine) for _ in range(DIGESTS_MAX + 3)]
        await runs[-1].durable(0)
        for live in runs:
            assert (await digests.of(live.id)).next_seq == 1
        assert len(digests._known) <= DIGESTS_MAX + 1
        live = runs[-1]
        await live.durable(live.append(Kind.STEP, b"0 search", b"1"))
        first, again = await asyncio.gather(digests.of(live.id), digests.of(live.id))
        assert first is again
        assert first.next_seq == 2
        digests.forget(live.id)
        assert (await digests.of(live.id)) is not first
        await engine.close()

    run(check())


def test_samples_of_an_engine() -> None:
    async def check() -> None:
        engine = Engine(MemoryStore())
        await engine.open()
        sampler = Sampler(engine)
        assert sampler.take() is None
        live = begin(engine)
        await live.durable(0)
        await asyncio.sleep(0.01)
        live.append(Kind.STEP, b"0 search", b"1")
        sample = sampler.take(0.002)
        assert sample is not None
        assert (sample.live, sample.behind, sample.readers, sample.late_ms) == (1, 1, 0, 2.0)
        assert sample.commits_s > 0
        assert sample.log_bytes == 0
        assert 0 < sample.commit_ms < 10_000
        assert sample.commit_ms <= sample.slow_ms * 2 < 20_000
        assert sample.batch == 1
        assert sample.lag_ms >= 0
        assert sample.retries_s == 0
        sampler.wanted()
        sampler.wanted()
        await engine.close()  # takes the sampler's task with it
        assert not engine.tasks

    run(check())
