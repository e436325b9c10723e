"""How times, sizes and statuses are said."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import orjson

from durable_endpoints.limits import KIB, MIB
from durable_endpoints.records import RunRecord, Status

# A running run that has recorded nothing for so long is worth a look.
QUIET_MS: Final = 60_000

ATTENTION: Final[frozenset[Status]] = frozenset({"failed", "dead", "diverged"})
EXPLAINED: Final[dict[Status, str]] = {
    "running": "at work now",
    "suspended": "waits for a signal or a timer; nothing of it is in memory",
    "completed": "answered, and ended well",
    "failed": "its handler raised an error",
    "cancelled": "stopped by request; what it had sent stays",
    "dead": "gave up: out of attempts, or of recoveries; it can be had to go on",
    "diverged": "parked: today's code does not do what its journal holds",
}


def duration(ms: float) -> str:
    """A length of time, as short as it can be said."""
    if ms < 1:
        return f"{ms * 1000:.0f} µs" if ms > 0 else "0 ms"
    if ms < 1000:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    minutes, seconds = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def tick(us: int, step_us: int) -> str:
    """A time on an axis whose ticks are `step_us` apart."""
    if us < 60_000_000:
        return duration(us / 1000)
    seconds, rest_us = divmod(us, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    if step_us >= 1_000_000:
        return parts
    return f"{parts}.{rest_us // 1000:03}" if step_us < 100_000 else f"{parts}.{rest_us // 100_000}"


def roughly(ms: float) -> str:
    """A length of time for ages: one unit, two where that says much more."""
    seconds = int(ms // 1000)
    if seconds < 60:
        return f"{seconds} s" if seconds > 0 else "now"
    if seconds < 3600:
        return f"{seconds // 60} min"
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"


def size(count: float) -> str:
    """A number of bytes."""
    if count < KIB:
        return f"{count:.0f} B"
    return f"{count / KIB:.1f} KiB" if count < MIB else f"{count / MIB:,.1f} MiB"


def number(count: float) -> str:
    """A number, grouped."""
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def cost(amount: float) -> str:
    """An amount of money; what is small keeps some figures."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.6f}"


def iso(at_ms: int) -> str:
    """A time, ISO 8601 in UTC, for machines and for titles."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def clock(at_ms: int) -> str:
    """A time of day in UTC, with the date."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def quiet_ms(record: RunRecord, now_ms: int) -> int:
    """For how long a running run has recorded nothing, if that is worth saying; else 0."""
    silent = now_ms - record.updated_at_ms
    return silent if record.status == "running" and silent >= QUIET_MS else 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a suspended run waits for: `person`, `signal`, `time` or `run`."""

    sort: str
    text: str
    until_ms: int | None


_SORTS: Final = {
    "approval": ("person", "approval"),
    "decision": ("person", "decision about"),
    "signal": ("signal", "signal"),
    "timer": ("time", "timer"),
    "retry": ("time", "next attempt of"),
    "quota": ("time", "room in the rate limit of"),
    "child": ("run", "run"),
}


def waits(record: RunRecord) -> list[Waiting]:
    """Return what a suspended run waits for, as its row says."""
    if record.status != "suspended":
        return []
    found = []
    for wait in orjson.loads(record.waiting or "[]"):
        sort, said = _SORTS.get(wait["kind"], ("signal", wait["kind"]))
        until = wait.get("until")
        until_ms = int(datetime.fromisoformat(until).timestamp() * 1000) if until else None
        name = wait.get("name") or ""
        found.append(Waiting(sort, f"{said} {name}".strip(), until_ms))
    if not found and record.wake_at_ms:
        found.append(Waiting("time", "timer", record.wake_at_ms))
    return sorted(found, key=lambda wait: wait.sort != "person")
