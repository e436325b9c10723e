"""The loop: one server under load, killed at one point after another, then judged."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from durable_endpoints.testing import Violation
from tests.crash.evidence import read_store
from tests.crash.process import CrashServer
from tests.crash.waiting.clients import Clients
from tests.crash.waiting.judge import AtKill, Report, check_intents, judge, take_evidence
from tests.crash.waiting.nursery import WaitingServer
from tests.crash.waiting.sink import sink

POINTS: Final = (
    "wait.begin", "wait.done", "signal.begin", "signal.done", "received.begin", "received.done",
    "timer.begin", "timer.done", "fired.begin", "fired.done",
    "suspended.begin", "suspended.done", "claim.begin", "claim.done", "read.done",
    "intent.begin", "intent.done", "call.begin", "call.mid", "call.done", "step.begin", "step.done",
    "attempt.begin", "attempt.done", "step_failed.begin", "step_failed.done",
    "undoable.begin", "undoable.done", "undo.begin", "undo.mid", "undo.done",
    "failed.begin", "failed.done", "cancel.begin", "cancel.done", "cancelled.begin",
    "cancelled.done", "spawn.begin", "spawn.done", "started.begin", "started.done",
    "completed.begin", "completed.done", "append.half", "append.woken",
)  # fmt: skip
# The rest: what every run goes through; the other crash tests kill there as well.
ALSO: Final = frozenset(
    point for point in POINTS
    if point.partition(".")[0] in {
        "claim", "read", "started", "completed", "append", "spawn", "cancel", "cancelled", "failed",
        "suspended", "attempt", "step_failed",
    }
)  # fmt: skip
CLIENTS: Final = 15
FINISH_S: Final = 60.0
RECORD: Final = "sink.jsonl"
_NTH: Final = (1, 2, 3)

Progress = Callable[[], None]


def lives(trials: int, others: int, seed: int) -> list[str]:
    """Return `name:n` for that many trials of every point, in an order of their own.

    `others`: how many for each of `ALSO`.

    The first trial of a point is its first coming-up, which comes soonest.
    """
    chance = random.Random(f"points/{seed}")
    found = [
        f"{point}:{chance.choice(_NTH) if trial else 1}"
        for point in POINTS for trial in range(others if point in ALSO else trials)
    ]  # fmt: skip
    chance.shuffle(found)
    return found


async def kill_and_judge(
    directory: Path, seed: int, points: Sequence[str], progress: Progress = lambda: None
) -> Report:
    """Kill one server at these points, one after another, under load; judge what was seen."""
    began = time.monotonic()
    report = Report()
    evidence: list[AtKill] = []
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / RECORD
    with sink(record) as sink_url:
        server = WaitingServer(directory, sink_url)
        clients = Clients(server.url, seed, CLIENTS)
        try:
            async with clients:
                for point in points:
                    if not await server.life_to(DURABLE_CRASH_AT=point):
                        report.missed.append(point)
                    stored = await asyncio.to_thread(read_store, server.store)
                    evidence.append(take_evidence(record, stored))
                    report.violations += check_intents(record, stored)
                    clients.check_alive()
                    report.kills += 1
                    progress()
                server.arm()
                await server.begin()
                stuck = await clients.finish(FINISH_S)
                await _let_children_end(server)
        finally:
            await asyncio.to_thread(server.kill)
    for story in stuck:
        report.violations.append(Violation("I16", story.run_id, f"{story.path} is stuck"))
    judge(record, read_store(server.store), clients.stories, evidence, report)
    report.took_s = time.monotonic() - began
    return report


async def _let_children_end(server: CrashServer) -> None:
    """Wait, a while, until the runs that no client knows are at their ends, too."""
    deadline = time.monotonic() + FINISH_S
    while time.monotonic() < deadline:
        stored = await asyncio.to_thread(read_store, server.store)
        if all(run.status not in ("running", "suspended") for run in stored.values()):
            return
        await asyncio.sleep(0.2)


async def in_parts(
    place: Path, seed: int, trials: int, parts: int, progress: Progress = lambda: None,
    points_a_store: int = 60, others: int | None = None,
) -> Report:  # fmt: skip
    """Share the points among some servers at a time, each with a store of its own, and again."""
    total = Report()
    points = lives(trials, trials if others is None else others, seed)
    shares = [points[at : at + points_a_store] for at in range(0, len(points), points_a_store)]
    if len(shares) < parts:
        shares = [points[part::parts] for part in range(parts)]
    queue = list(enumerate(shares))

    async def work() -> None:
        while queue:
            number, share = queue.pop(0)
            total.add(await kill_and_judge(place / f"part{number}", seed + number, share, progress))

    await asyncio.gather(*(work() for _ in range(parts)))
    return total


def processors() -> int:
    """Return how many servers are worth running side by side."""
    return max(1, min(4, len(os.sched_getaffinity(0))))
