"""A real server that kills itself at every named crash point, under load, and is judged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.crash.kills import kill_and_judge, point_lives
from tests.crash.workload import CUT_STREAMS, ENDPOINTS
from tests.support import sometimes

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

# What each group needs is there when it begins: the lives before it leave interrupted runs.
GROUPS = {
    "start": ("append.done:9", "open.begin", "open.done", "claim.begin", "claim.done", "read.done",
              "read.done:4", "claim.done:2", "open.done"),
    "append": ("append.begin:3", "append.half:2", "append.done:4", "append.woken:5",
               "append.half:12", "append.begin:1", "append.done:1", "append.woken:1",
               "append.half:30"),
    "run": ("started.begin", "started.done", "step.begin:3", "step.done:4", "value.done:2",
            "value.begin", "shared.begin", "shared.done", "completed.begin", "completed.done",
            "body_end.begin", "body_end.done"),
    "events": ("head.begin", "head.done:2", "chunk.begin:7", "chunk.done:9", "emit.begin",
               "emit.done", "head.done", "chunk.done:1"),
    "streams": ("stream.begin", "stream.done:2", "item.begin:5", "item.done:9", "item.done:20",
                "stream_end.begin", "stream_end.done", "stream_end.done:3"),
    "interrupted": ("item.done:30", "reset.begin", "reset.done", "item.done:25", "rewind.begin",
                    "rewind.done", "item.done:35", "reset.done", "rewind.done"),
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_crash_points(group: str, tmp_path: Path) -> None:
    lives = point_lives(GROUPS[group])
    endpoints = CUT_STREAMS if group == "interrupted" else ENDPOINTS
    seed = list(GROUPS).index(group)
    report = asyncio.run(kill_and_judge(tmp_path, seed, lives, clients=24, endpoints=endpoints))
    print(report)
    sometimes.SEEN[sometimes.CRASH].update(report.met)
    assert not report.violations, str(report)
    assert not report.missed, str(report)
