"""The alert rules name metrics that there are."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from durable_endpoints.asgi.metrics import metrics_of
from durable_endpoints.engine.engine import Engine
from durable_endpoints.limits import RUNS_LIVE_MAX
from durable_endpoints.stores.memory import MemoryStore

RULES = Path(__file__).parents[2] / "examples" / "alerts.yml"


def test_the_alerts_name_metrics_that_there_are() -> None:
    async def names() -> set[str]:
        engine = Engine(MemoryStore())
        await engine.open()
        found = {metric.name for metric in metrics_of(engine)}
        await engine.close()
        return found

    text = RULES.read_text()
    exprs = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(exprs) == len(re.findall(r"- alert: ", text)) > 5
    named = {re.sub(r"_(bucket|sum|count)$", "", name)
             for name in re.findall(r"\bdurable_[a-z_]+", " ".join(exprs))}  # fmt: skip
    assert named <= asyncio.run(names())
    assert f"at {RUNS_LIVE_MAX:,} it answers 503" in text
