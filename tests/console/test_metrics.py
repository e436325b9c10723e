"""Metrics of an engine at work, as a scraper reads them."""

from __future__ import annotations

import asyncio
import re

from durable_endpoints import Retry, durable, step
from durable_endpoints.asgi.metrics import (
    CONTENT_TYPE,
    Curve,
    Metric,
    gathered,
    metrics_of,
    render,
)
from durable_endpoints.clock import SystemClock
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import start
from durable_endpoints.engine.meters import Histogram
from durable_endpoints.records import Kind
from durable_endpoints.stores.memory import MemoryStore

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+')


FAILURES: list[int] = []


@step
def plain() -> int:
    return 1


@step(retry=Retry(attempts=5, initial=0.001))
async def shaky() -> int:
    if FAILURES and FAILURES[0]:
        FAILURES[0] -= 1
        raise ConnectionError("not yet")
    return 2


@durable
async def busy() -> int:
    return plain() + await shaky()


def samples(text: bytes) -> dict[str, float]:
    """Return each sample's value by its name and labels."""
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines)
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_an_engine_at_work() -> None:
    async def measure() -> tuple[dict[str, float], dict[str, float]]:
        engine = Engine(MemoryStore())
        await engine.open()
        run = engine.begin("POST /ask", version="1", args=b"{}", payload=b"")
        run.append(Kind.STEP, b"0 search", b"1")
        before = samples(render(metrics_of(engine)))
        await run.durable(1)
        after = samples(render(metrics_of(engine)))
        await engine.close()
        return before, after

    before, after = asyncio.run(measure())
    assert before['durable_runs_live{status="running"}'] == 1
    assert before['durable_runs_live{status="dead"}'] == 0
    assert before["durable_entries_behind"] == 2
    assert after["durable_entries_behind"] == 0
    assert after["durable_commits_total"] == before["durable_commits_total"] + 1
    assert after["durable_store_failed"] == after["durable_draining"] == 0


class StoppedClock(SystemClock):
    """No step takes any time, so that a busy machine puts none into another bucket."""

    monotonic_s = staticmethod(lambda: 0.0)


def test_what_is_counted_on_the_way() -> None:
    async def measure() -> dict[str, float]:
        engine = Engine(MemoryStore(), clock=StoppedClock())
        await engine.open()
        for failures in (0, 2):
            FAILURES[:] = [failures]
            await (await start(engine, busy)).result()
            engine.log.meters.took_us.append(3_000_000)
        parked = engine.begin("POST /dead", version="1", args=b"{}", payload=b"")
        parked.park("dead", "RuntimeError: no")
        await engine.log.flush()
        assert engine.log.lag_s == 0
        found = samples(render(await gathered(engine)))
        await engine.close()
        return found

    found = asyncio.run(measure())
    assert found["durable_step_retries_total"] == 2
    assert found["durable_step_seconds_count"] == 2 * 3
    assert found['durable_step_seconds_bucket{le="2.097152"}'] == 4
    assert found['durable_step_seconds_bucket{le="4.194304"}'] == 6
    assert 6 <= found["durable_step_seconds_sum"] < 10
    assert found["durable_commit_seconds_count"] == found["durable_commits_total"] > 3
    assert found['durable_commit_seconds_bucket{le="+Inf"}'] == found["durable_commits_total"]
    assert found["durable_batch_entries_sum"] > found["durable_batch_entries_count"]
    assert found['durable_runs_stored{status="dead"}'] == 1
    assert found['durable_runs_stored{status="suspended"}'] == 0
    assert found["durable_lag_seconds"] == 0


def test_buckets_are_cumulative_and_exact() -> None:
    histogram = Histogram()
    for value in (0, 1, 2, 3, 4, 1 << 50):
        histogram.add(value)
    lines = render([Curve("m", "Sizes.", histogram, range(3), 1)]).decode().splitlines()
    assert lines[1:] == [
        "# TYPE m histogram", 'm_bucket{le="0"} 1', 'm_bucket{le="1"} 2', 'm_bucket{le="3"} 4',
        'm_bucket{le="+Inf"} 6', f"m_sum {(1 << 50) + 10}", "m_count 6",
    ]  # fmt: skip


def test_quantiles_of_what_came_since() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == histogram.mean == 0
    histogram.add(100_000)
    before = histogram.copy()
    for _ in range(99):
        histogram.add(100)
    histogram.add(10_000)
    since = histogram.since(before)
    assert (since.count, since.mean) == (100, 199)
    assert 64 <= since.quantile(0.5) < 128 <= since.quantile(0.995) <= 16_384


def test_the_text_format() -> None:
    metric = Metric("m", "gauge", "What it is.", {(("l", 'a"b\\c\nd'),): 1.5, (): 3})
    lines = render([metric]).decode().splitlines()
    assert lines[:2] == ["# HELP m What it is.", "# TYPE m gauge"]
    assert lines[2:] == ['m{l="a\\"b\\\\c\\nd"} 1.5', "m 3"]
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
