"""Descriptors and memory run out under load: a clean refusal, or the end, never a wrong answer."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from durable_endpoints.testing.transcript import Violation
from tests.crash.judge import Report
from tests.crash.kills import Life, kill_and_judge
from tests.crash.process import CrashServer
from tests.crash.workload import ENDPOINTS
from tests.faults.test_disk_errors import LEFT

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="prlimit and /proc are Linux's"),
]
# Work in threads fails where there is no memory for one: so says its run, and is believed.
AT_WORK = tuple(endpoint for endpoint in ENDPOINTS if not endpoint.path.startswith("/sync"))
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
UNTOLD = "no client was told"
# How a process may end that has no memory: by its own word, or as the interpreter does then.
ENDS = {LEFT, 1, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}


def descriptors(chance: random.Random) -> Life:
    """Return a life in which no further file or connection can be opened, for a while."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        most = max(map(int, os.listdir(f"/proc/{server.pid}/fd")))
        with limited(server, resource.RLIMIT_NOFILE, max(3, most + chance.randint(-8, 2))):
            refused = await is_refused(server, "GET", "/_durable/health")
            await asyncio.sleep(chance.uniform(0, 0.6))
        await asyncio.sleep(chance.uniform(0, 0.3))
        await ended(server, {LEFT})
        return refused

    return live


def memory(chance: random.Random) -> Life:
    """Return a life in which the process is given no further memory, for a while."""

    async def live(server: CrashServer) -> bool:
        server.arm()
        await server.begin()
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        size = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0]) * PAGE
        with limited(server, resource.RLIMIT_AS, size + int(chance.uniform(-4, 1) * MIB)):
            # No client waits for the answers to these: they are no story's.
            refused = await is_refused(server, "POST", "/sse?n=1", os.urandom(3 * MIB))
            await asyncio.sleep(chance.uniform(0, 0.6))
        await asyncio.sleep(chance.uniform(0, 0.3))
        await ended(server, ENDS)
        return refused

    return live


@contextmanager
def limited(server: CrashServer, what: int, limit: int) -> Iterator[None]:
    """Lower a limit of the process for a while."""
    usual = resource.prlimit(server.pid, what)
    resource.prlimit(server.pid, what, (limit, usual[1]))
    yield
    if server.running:
        resource.prlimit(server.pid, what, usual)


async def is_refused(server: CrashServer, method: str, path: str, body: bytes = b"") -> bool:
    """Ask until that is refused, for two seconds; say whether it was."""
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s:
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=1) as http:
                answer = await http.request(method, path, content=body)
        except httpx.TransportError:
            return True
        if answer.status_code >= 500:
            return True
    return False


async def ended(server: CrashServer, codes: set[int]) -> None:
    """Kill what is still there; what has ended by itself must have ended in one of these ways."""
    if server.running:
        server.signal(signal.SIGKILL)
    code = await asyncio.to_thread(server.wait)
    assert code in codes | {-signal.SIGKILL}, f"the server ended with {code}\n{server.tail()}"


def starved(chance: random.Random, number: int) -> tuple[str, Life]:
    """Return a life that lacks something."""
    what = (descriptors, memory)[number % 2]
    return f"no {what.__name__} {number}", what(chance)


def wrong(report: Report) -> list[str]:
    """Return what did not hold; the answers that nobody waited for are no client's.

    Now and then there is room for what was to be refused; lives of which that is half say nothing.
    """
    found = [
        str(found)
        for found in report.violations
        if UNTOLD not in found.detail and not says_no_memory(found)
    ]
    if report.missed and 2 * len(report.missed) >= report.kills:
        names = ", ".join(report.missed)
        found.append(
            f"nothing was refused in {len(report.missed)} of {report.kills} lives: {names}"
        )
    return found


def says_no_memory(found: Violation) -> bool:
    """Say whether a run ended as failed of a handler without memory: true, and its own error."""
    return (
        found.invariant == "I16"
        and " is failed: " in found.detail
        and "MemoryError" in found.detail
    )


def test_nothing_wrong_is_said_where_descriptors_or_memory_run_out(tmp_path: Path) -> None:
    chance = random.Random(7)
    server = CrashServer(tmp_path)
    lives = [starved(chance, number) for number in range(6)]
    report = asyncio.run(
        kill_and_judge(tmp_path, 7, lives, clients=24, server=server, endpoints=AT_WORK)
    )
    print(report)
    assert not wrong(report), str(report)
    assert report.interrupted > len(lives), str(report)


def test_only_what_a_handler_without_memory_says_is_let_pass() -> None:
    said = "/chat is failed: step tell: MemoryError"
    untold = Violation("I10", "run", f"its answer was void, {UNTOLD}")
    let_pass = [Violation("I16", "run", said), untold]
    told = [
        Violation("I16", "run", "/chat is failed: step tell: OSError"),
        Violation("I16", "run", "/chat is stuck, MemoryError or not"),
        Violation("I1", "run", said),
    ]
    report = Report(7)
    report.violations += [*let_pass, *told]
    assert wrong(report) == [str(found) for found in told]


def test_lives_that_mostly_lacked_nothing_are_wrong() -> None:
    report = Report(7, kills=6, missed=["no memory 1", "no memory 3"])
    assert wrong(report) == []
    report.missed.append("no memory 5")
    assert wrong(report) == [
        "nothing was refused in 3 of 6 lives: no memory 1, no memory 3, no memory 5"
    ]
