"""Options of the crash tests."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

import pytest

from tests.crash.process import kill_all
from tests.support import sometimes
from tests.support.meeting import OUTPUT, Met, missed

# Whose tests, all of them, must come by every point of the table.
MODULES = ("test_crash_points.py", "test_crash_scripts.py")
_left: set[str] = set()
_ran = {"all": False}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crash-kills", type=int, default=40, help="random kills (default 40)")
    parser.addoption("--mutants", action="store_true", help="try some broken engines")
    parser.addoption("--crash-seed", type=int, default=None, help="seed of the random kills")


@pytest.fixture(autouse=True)
def _no_server_left() -> Iterator[None]:
    yield
    kill_all()


def _ours(items: Iterable[pytest.Item]) -> list[str]:
    return [item.nodeid for item in items if item.path.name in MODULES]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note whether all of the tests were chosen that have to meet the table."""
    from tests.crash.test_crash_points import GROUPS
    from tests.crash.test_crash_scripts import SCRIPTS

    _left.update(_ours(items))
    _ran["all"] = len(_left) == len(GROUPS) + len(SCRIPTS)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """A part of them meets a part of the table."""
    _ran["all"] = _ran["all"] and not _ours(items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note who came to a good end."""
    if report.when == "call" and report.passed:
        _left.discard(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run of the whole tier that did not come by some point or path of the table."""
    met = Met(_ran["all"], frozenset(_left), dict(sometimes.SEEN[sometimes.CRASH]))
    output = getattr(session.config, "workeroutput", None)
    if output is not None:  # one of several processes: what all of them met is looked at together
        output[OUTPUT] = (met.chosen, sorted(met.left), met.seen)
    elif (said := missed([met])) and session.exitstatus == pytest.ExitCode.OK:
        sys.stderr.write(said)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
