"""What the whole suite leaves behind: no process, and an interpreter that ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.postgres import addresses

EXIT_S = 60.0


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Give store addresses, of a new schema each, on one PostgreSQL server for all tests."""
    with addresses() as address:
        yield address


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill and name every process that a test left: it would hold the output open for ever."""
    left = _descendants(os.getpid())
    for pid, command in left:
        sys.stderr.write(f"\nleft behind by the tests: {pid} {command}\n")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure() -> None:
    """Say where an interpreter hangs that does not end, and end it."""
    faulthandler.dump_traceback_later(EXIT_S, exit=True, file=sys.__stderr__)


def _descendants(root: int) -> list[tuple[int, str]]:
    """Return the processes below one, with their command lines; zombies left out."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent)
            commands[int(entry.name)] = command
    found: list[tuple[int, str]] = []
    below = {root}
    while below:
        below = {pid for pid, parent in parents.items() if parent in below}
        found += [(pid, commands[pid]) for pid in below]
    return found
