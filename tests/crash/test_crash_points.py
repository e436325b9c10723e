"""A real server that kills itself at every named crash point, under load, and is judged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.kills import kill_and_judge, point_lives
from tests.crash.workload import CUT_STREAMS, ENDPOINTS, Endpoint
from tests.support import sometimes

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


class Group(NamedTuple):
    """Lives that end at these points, and who is at work meanwhile."""

    points: tuple[str, ...]
    endpoints: tuple[Endpoint, ...] = ENDPOINTS
    clients: int = 24


# Only a start that finds a cut stream of this policy tells its handler.
TOLD = tuple(endpoint for endpoint in CUT_STREAMS if endpoint.path == "/tokens/fail")
# Longer than any drain: something is left to the next process.
LONG = (Endpoint("/tokens/resume?n=800", stream=True),)

# What each group needs is there when it begins: the lives before it leave interrupted runs.
GROUPS = {
    "start": Group((
        "append.done:9", "open.begin", "open.done", "claim.begin", "claim.done", "read.done",
        "read.done:4", "claim.done:2", "open.done",
    )),
    "append": Group((
        "append.begin:3", "append.half:2", "append.done:4", "append.woken:5", "append.half:12",
        "append.begin:1", "append.done:1", "append.woken:1", "append.half:30",
    )),
    "run": Group((
        "started.begin", "started.done", "step.begin:3", "step.done:4", "value.done:2",
        "value.begin", "shared.begin", "shared.done", "completed.begin", "completed.done",
        "body_end.begin", "body_end.done",
    )),
    "events": Group((
        "head.begin", "head.done:2", "chunk.begin:7", "chunk.done:9", "emit.begin", "emit.done",
        "head.done", "chunk.done:1",
    )),
    "streams": Group((
        "stream.begin", "stream.done:2", "item.begin:5", "item.done:9", "item.done:20",
        "stream_end.begin", "stream_end.done", "stream_end.done:3",
    )),
    "interrupted": Group((
        "item.done:30", "reset.begin", "reset.done", "item.done:25", "rewind.begin",
        "rewind.done", "item.done:35", "reset.done", "rewind.done",
    ), CUT_STREAMS),
    "told": Group((
        "item.done:40", "step_failed.begin", "item.done:40", "step_failed.done",
        "item.done:20", "step_failed.done",  # all cut streams may fail in one append
    ), TOLD),
    "leaving": Group((
        "append.done:40", "release.begin", "release.done", "close.begin", "close.done",
    ), LONG, 6),
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_crash_points(group: str, tmp_path: Path) -> None:
    points, endpoints, clients = GROUPS[group]
    seed = list(GROUPS).index(group)
    report = asyncio.run(
        kill_and_judge(tmp_path, seed, point_lives(points), clients=clients, endpoints=endpoints)
    )
    print(report)
    sometimes.SEEN[sometimes.CRASH].update(report.met)
    assert not report.violations, str(report)
    assert not report.missed, str(report)
