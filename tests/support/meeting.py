"""What the crash tests met, in one process or in several of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tests.support import sometimes

OUTPUT: Final = "crash"  # where a process of several puts it


class Met(NamedTuple):
    """What one process met."""

    chosen: bool  # whether all of the tests are to run that have to meet the table
    left: frozenset[str]  # those that did not pass here
    seen: Mapping[str, int]


def missed(met: Sequence[Met]) -> str:
    """Return what is to be said of a run of the whole tier that missed something; else ""."""
    if not met or not all(one.chosen for one in met):
        return ""
    if frozenset.intersection(*(one.left for one in met)):
        return ""  # some test failed, and says so
    seen = sum((Counter(one.seen) for one in met), Counter[str]())
    missing = sometimes.missing(sometimes.CRASH, seen)
    return f"\nnever met by the crash tests: {', '.join(missing)}\n" if missing else ""
