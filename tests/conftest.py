"""What the whole suite leaves behind: no process, and an interpreter that ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.meeting import OUTPUT, Met, missed
from tests.support.postgres import addresses

EXIT_S = 60.0
os.environ["COLUMNS"] = "160"  # tables are as wide, whoever starts the tests
_told: list[dict[str, Any]] = []  # by the processes of a run that has several


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Give store addresses, of a new schema each, on one PostgreSQL server for all tests."""
    with addresses() as address:
        yield address


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test logged pass from process to process, also if it is no Unicode."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what one of several processes of this run has to tell."""
    _told.append(getattr(node, "workeroutput", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that left processes behind, or whose crash tests missed something."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left behind"] = _kill_what_is_left()
        return
    if _told:
        left = [one for told in _told for one in told.get("left behind", ())]
        met = [Met(chosen, frozenset(left_over), seen)
               for told in _told if OUTPUT in told
               for chosen, left_over, seen in [told[OUTPUT]]]  # fmt: skip
        said = missed(met)
    else:
        left, said = _kill_what_is_left(), ""
    sys.stderr.write("".join(f"\nleft behind by the tests: {one}\n" for one in left) + said)
    if (left or said) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _kill_what_is_left() -> list[str]:
    """Kill and name every process that a test left: it would hold the output open for ever."""
    left = _descendants(os.getpid())
    for pid, _ in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"{pid} {command}" for pid, command in left]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say where an interpreter hangs that does not end, and end it."""
    if hasattr(config, "workerinput"):
        return  # it lives for as long as the slowest of them
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
