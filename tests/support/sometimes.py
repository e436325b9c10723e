"""What must have happened somewhere in a run of the suite: else nobody knows that it goes well.

One table of crash points and recovery paths, and the tiers that have to come by each of them. A
tier counts what it meets and asks `missing` in the end; a name that nobody met is a failure: the
tests no longer get there, and have to be mended. `python -m tests.support.sometimes` prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.crash import points
from tests.simulation import weather

SIMULATION: Final = "simulation"
CRASH: Final = "crash points"
BOTH: Final = (SIMULATION, CRASH)

SEEN: Final[dict[str, Counter[str]]] = {tier: Counter() for tier in BOTH}  # in this process

# What an engine does after a crash, a pause or a wait, and who sees it happen.
PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    "a stream begins anew": BOTH,
    "a reader is rewound": BOTH,
    "a handler is told of an interruption": BOTH,
    "a stream is finalized": BOTH,
    "a stream is left early": (SIMULATION,),
    "a suspect is taken up": (SIMULATION,),
    "a run is parked as dead": (SIMULATION,),
    "a dead run goes on": (SIMULATION,),
    "a cancelled run is taken up": (SIMULATION,),
    "a run is suspended": BOTH,
    "a commit is fenced": (SIMULATION,),
    "a process is stopped, and its successor begins": (SIMULATION,),
    "a stopped process goes on": (SIMULATION,),
    "a process has drained": (SIMULATION,),
    "the process leaves after a failed write": (SIMULATION,),
    "append fails, done": (SIMULATION,),
    "append fails, not done": (SIMULATION,),
    "claim fails, done": (SIMULATION,),
    "claim fails, not done": (SIMULATION,),
    "a client met Fenced": (SIMULATION,),
    "a client met Overloaded": (SIMULATION,),
    "a signaller met RunEnded": (SIMULATION,),
    "a reader leaves and comes back": BOTH,
    "a run is completed": BOTH,
    "a run is failed": BOTH,
    "a run is cancelled": BOTH,
}


def at(point: str) -> str:
    """Return the name of a crash at a point."""
    return f"crash at {point}"


def table() -> dict[str, tuple[str, ...]]:
    """Return every name, with the tiers that must meet it."""
    found = {at(point): (SIMULATION,) for point in (*weather.POINTS, *weather.kind_points())}
    for point in points.POINTS:
        found[at(point)] = (*found.get(at(point), ()), CRASH)
    return found | dict(PATHS)


def missing(tier: str, seen: Mapping[str, int]) -> list[str]:
    """Return what a tier must have met and has not."""
    return [name for name, tiers in table().items() if tier in tiers and not seen.get(name)]


def shown(seen: Mapping[str, Counter[str]]) -> Table:
    """Return the table, with what was counted for each tier."""
    made = Table("what", *BOTH)
    for name, tiers in sorted(table().items()):
        made.add_row(name, *(
            str(seen.get(tier, Counter())[name]) if tier in tiers else "" for tier in BOTH
        ))  # fmt: skip
    return made


if __name__ == "__main__":
    Console().print(shown({}))
