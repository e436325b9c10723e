"""Metrics of an engine at work, as a scraper reads them."""

from __future__ import annotations

import asyncio
import re

from durable_endpoints.asgi.metrics import CONTENT_TYPE, Metric, metrics_of, render
from durable_endpoints.engine.engine import Engine
from durable_endpoints.records import Kind
from durable_endpoints.stores.memory import MemoryStore

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+]+')


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


def test_the_text_format() -> None:
    metric = Metric("m", "gauge", "What it is.", {(("l", 'a"b\\c\nd'),): 1.5, (): 3})
    lines = render([metric]).decode().splitlines()
    assert lines[:2] == ["# HELP m What it is.", "# TYPE m gauge"]
    assert lines[2:] == ['m{l="a\\"b\\\\c\\nd"} 1.5', "m 3"]
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
