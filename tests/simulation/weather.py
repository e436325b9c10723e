"""What a world is like: how fast its machines are, which limits it meets, how its processes end."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from durable_endpoints import limits
from durable_endpoints.records import Kind

POINTS: Final = (
    "boot.begin", "boot.done", "open.answered", "append.begin", "append.applied",
    "append.answered", "claim.begin", "claim.applied", "claim.answered", "read.answered",
    "release.begin", "release.applied", "close.begin", "client.start", "client.started",
    "client.event", "client.cancel", "client.cancelled", "client.signal", "client.signalled",
    "client.retry",
)  # fmt: skip
# Entries that only a response makes; there is none here.
ELSEWHERE: Final = frozenset({Kind.HEAD, Kind.CHUNK, Kind.BODY_END})
POINT_TURNS: Final = 6000  # for a point to come up
# So that a poison run's world is not mostly waiting.
BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
# Limits, and the small values that a world may give them.
LIMITS: Final[dict[str, tuple[Any, ...]]] = {
    "WINDOW_ENTRIES_MAX": (1, 3, 20),
    "WINDOW_BYTES_MAX": (200, 2000),
    "WINDOW_AGE_S_MAX": (0.001, 0.05),
    "RECENT_BYTES_MAX": (1, 200),
    "READ_BYTES_MAX": (1, 300),
    "LIST_ROWS_MAX": (1, 2),
    "RECOVERIES_PARALLEL_MAX": (1, 2),
    "RECOVERY_PATIENCE_S": (0.0, 0.01),
    "TURN_S_MAX": (0.0, 1e-5),
    "FIRST_COMMIT_S_MAX": (0.0, 0.1),
}


@dataclass
class End:
    """How a process is to end: after so many turns, or at the n-th pass of a point."""

    how: str  # turns, point, fail, drain, zombie; or calm: when all is done
    point: str = ""
    count: int = 0
    turns: int = 1 << 40
    at_s: float = 0.0
    certain: str = ""  # of a failing write: whether it was done


@dataclass
class Weather:
    """What all of a world's processes have in common."""

    strict: bool
    cost_s: float  # of one callback, at most
    look_s: float  # of one look at the clock, at most
    latency_s: float  # of half a store operation, usually
    stall: float  # chance of a long one
    pause_s: float  # of a step, at most
    grace_s: float  # before a waiting run leaves memory
    limits: dict[str, Any] = field(default_factory=dict)


def draw_weather(chance: Random) -> Weather:
    """Draw fast and slow machines, and limits that are met."""
    return Weather(
        strict=chance.random() < 0.1,
        cost_s=chance.choice((0.0, 1e-6, 3e-5, 4e-4, 4e-3)),
        look_s=chance.choice((0.0, 0.0, 1e-6, 1e-4, 6e-4)),
        latency_s=chance.choice((1e-5, 1e-4, 1e-3, 2e-2)),
        stall=chance.choice((0.0, 0.0, 0.02, 0.1)),
        pause_s=chance.choice((0.0, 1e-4, 2e-3, 3e-2)),
        grace_s=chance.choice((1e-3, 0.05, 1.0)),
        limits=draw_limits(chance),
    )


def sought(seed: int) -> str:
    """Return the point at which some process of a world is to end; every other world has one."""
    points = (*POINTS, *kind_points())
    return points[seed // 2 % len(points)] if seed % 2 == 0 else ""


def draw_ends(chance: Random, seed: int) -> list[End]:
    """Draw how the processes end, one after another; the last one is left in peace."""
    ends = []
    if sought(seed).startswith(("release.", "close.")):
        ends.append(End("drain", turns=int(2 ** chance.uniform(5, 9))))
    if sought(seed).startswith(("reset.", "rewind.")):  # a stream has to be cut first
        ends.append(End("point", "item.applied", chance.randint(1, 5), POINT_TURNS))
    for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4))):
        how = chance.choices(("turns", "point", "fail", "drain", "zombie"), (6, 6, 2, 2, 1))[0]
        end = End(how)
        if how == "turns":
            end.turns = int(2 ** chance.uniform(2, 10))
        elif how == "point":
            end.point = chance.choice((*POINTS, *kind_points()))
            end.count = int(2 ** chance.uniform(0, 3))
            end.turns = POINT_TURNS
        elif how == "fail":
            end.point = chance.choice(("append", "append", "append", "claim"))
            end.count = int(2 ** chance.uniform(0, 4)) if end.point == "append" else 1
            end.certain = chance.choice(("done", "not done"))
            end.turns = POINT_TURNS
        else:
            end.turns = int(2 ** chance.uniform(5, 10))
            end.at_s = chance.choice((0.0, 0.001, 0.1, 2.0))
        ends.append(end)
    return [*ends, End("calm")]


def kind_points() -> list[str]:
    """Return the points at which entries of each kind are on their way, and durable."""
    kinds = [kind for kind in Kind if kind not in ELSEWHERE]
    return [f"{kind.name.lower()}.{when}" for kind in kinds for when in ("begin", "applied")]


def draw_limits(chance: Random) -> dict[str, Any]:
    """Draw which limits are small."""
    always = {"RECOVERY_BACKOFF_S": BACKOFF_S}
    if chance.random() < 0.4:
        return always
    names = [name for name in LIMITS if hasattr(limits, name)]
    return always | {n: chance.choice(LIMITS[n]) for n in names if chance.random() < 0.3}
