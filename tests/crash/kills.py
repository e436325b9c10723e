"""The loop: a real server under load, killed again and again, and judged in the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from durable_endpoints.testing import Violation
from tests.crash.evidence import AtKill, check_effects, read_store, take_evidence
from tests.crash.judge import Report, check_published, judge, read_logs
from tests.crash.points import POINTS
from tests.crash.process import CrashServer
from tests.crash.workload import ENDPOINTS, Endpoint, Workload
from tests.support import sometimes

KILLS_A_STORE = 20  # then its journal is judged, and the next one begins
FINISH_S = 90.0

Life = Callable[[CrashServer], Awaitable[bool]]
Progress = Callable[[str], None]


def random_lives(seed: int, kills: int) -> list[tuple[str, Life]]:
    """Return lives that end at random moments."""
    chance = random.Random(f"kills/{seed}")

    async def live(server: CrashServer) -> bool:
        await server.random_life(chance)
        return True

    return [(f"random {number}", live) for number in range(kills)]


def point_lives(points: Sequence[str]) -> list[tuple[str, Life]]:
    """Return lives that end at named crash points, `name:n`."""

    def life(point: str) -> Life:
        if point.startswith(("release.", "close.")):
            return lambda server: server.life_to(
                leaving=True, DURABLE_CRASH_AT=point, GRACE_S="0.3"
            )
        return lambda server: server.life_to(DURABLE_CRASH_AT=point)

    return [(point, life(point)) for point in points]


async def kill_and_judge(
    directory: Path, seed: int, lives: Sequence[tuple[str, Life]], *, clients: int,
    progress: Progress = lambda _: None, server: CrashServer | None = None,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> Report:  # fmt: skip
    """Let a server over one store live these lives under load; judge all that its clients saw."""
    began = time.monotonic()
    report = Report(seed)
    evidence: list[AtKill] = []
    checked: dict[int, int] = {}
    server = server or CrashServer(directory)
    workload = Workload(server.url, seed, clients=clients, endpoints=endpoints)
    try:
        async with workload:
            for number, (name, life) in enumerate(lives):
                reached = await life(server)
                if not reached:
                    report.missed.append(name)
                stored = read_store(server.store)
                point = name.partition(":")[0]
                if reached and point in POINTS:
                    report.met[sometimes.at(point)] += 1
                report.violations += check_effects(directory, stored)
                evidence.append(take_evidence(directory, stored))
                report.violations += check_published(workload.stories, stored, checked)
                workload.check_alive()
                report.kills += 1
                progress(f"{directory.name}: {number + 1}/{len(lives)} lives, "
                         f"{len(workload.stories)} runs begun")  # fmt: skip
            report.early_kills = server.early
            server.arm()
            await server.begin()
            stuck = await workload.finish(FINISH_S)
            progress(f"{directory.name}: judging {len(workload.stories)} runs")
            logs = await read_logs(server.url, workload.stories, report)
    finally:
        if server.running:
            await asyncio.to_thread(server.kill)
    for story in stuck:
        report.violations.append(Violation("I16", str(story.run_id), f"{story.path} is stuck"))
    report.paths += workload.counts
    stored = read_store(server.store)
    for run in stored.values():
        report.met.update(run.paths())
    judge(directory, stored, workload.stories, logs, evidence, report)
    report.took_s = time.monotonic() - began
    return report


async def random_kills(
    place: Path, seed: int, kills: int, *, clients: int, progress: Progress = lambda _: None
) -> Report:
    """Kill `kills` times at random, over as many stores as that takes."""
    total = Report(seed)
    while total.kills < kills:
        number = total.kills // KILLS_A_STORE
        lives = random_lives(seed + number, min(KILLS_A_STORE, kills - total.kills))
        total.add(
            await kill_and_judge(
                place / f"store{number}", seed + number, lives, clients=clients,
                progress=lambda text: progress(f"{total.kills}/{kills} kills; {text}"),
            )
        )  # fmt: skip
    return total
