"""A clock for tests: days pass in milliseconds, for runs in memory and for suspended ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from weakref import WeakSet

import orjson

from durable_endpoints.clock import SystemClock
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.protocol import Query

_POLL_S: Final = 0.002
_QUIET_POLLS: Final = 2
# Kinds of waits that look again by themselves now and then: no reason to stop on the way.
_TOLD: Final = frozenset({"child", "turn"})


class TestClock:
    """A clock that goes on by itself, and that a test sets forward.

    Give it to the engine; `sleep`, timeouts of waits and of runs, waits between the attempts of a
    step, and `now()` go by it. (A step's own `timeout=` and a plain `asyncio.sleep` do not.)

        clock = TestClock()
        engine = Engine(open_store("memory:"), clock=clock)
        app.add_middleware(DurableMiddleware, engine=engine)
        ...
        await clock.skip(days=3)    # what falls due on the way happens, one thing after another

    `skip` is for tests on the engine's event loop. Where the app runs in a thread of its own, as
    under Starlette's TestClient, use `advance`. The clock outlives an engine: the next one that
    is given it goes on where the last one was.

    Args: `start`, an aware datetime: what the clock shows first; the time now if not given.

    Raises: ValueError for a `start` without a time zone.
    """

    __test__ = False  # for pytest: no class of tests

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None and start.utcoffset() is None:
            raise ValueError(f"TestClock({start!r}): give the datetime a time zone")
        self._system = SystemClock()
        self._skipped_ms = 0
        self._ahead_ms = 0  # of the machine's clock, without what was skipped
        if start is not None:
            self._ahead_ms = int(start.timestamp() * 1000) - self._system.now_ms()
        self._engines: WeakSet[Engine] = WeakSet()

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return self._system.now_ms() + self._ahead_ms + self._skipped_ms

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return self._system.monotonic_s() + self._skipped_ms / 1000

    def due_ms(self) -> int:
        """See `Clock.due_ms`."""
        return self._system.due_ms() + self._ahead_ms + self._skipped_ms

    def now(self) -> datetime:
        """Return what the clock shows, in UTC."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)

    def attach(self, engine: Engine) -> None:
        """Note whom to tell when the clock is set; called by the engine."""
        self._engines.add(engine)

    def advance(
        self, by: timedelta | None = None, *,
        days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0,
    ) -> None:  # fmt: skip
        """Set the clock forward at once. What is due by then happens after that; from any thread.

        Raises: ValueError for a time that goes back.
        """
        self._add(_milliseconds(by, days, hours, minutes, seconds))

    async def skip(
        self, by: timedelta | None = None, *,
        days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0,
        patience: float = 1.0,
    ) -> None:  # fmt: skip
        """Let time pass quickly: stop wherever something falls due, and let it happen.

        Returns when all runs are at their ends or wait for what is still to come. A run at
        other work (in a step, in a plain `await`) is given `patience` seconds of real time at
        every stop; then time goes on without it.

        Raises: ValueError for a time that goes back.
        """
        target_ms = self.due_ms() + _milliseconds(by, days, hours, minutes, seconds)
        await self._settle(patience)
        while (next_ms := await self._next_due_ms(target_ms)) is not None:
            self._add(max(0, next_ms - self.due_ms()))
            await self._settle(patience)
        self._add(max(0, target_ms - self.due_ms()))
        await self._settle(patience)

    def _add(self, more_ms: int) -> None:
        self._skipped_ms += more_ms
        for engine in self._open():
            engine.waking.clock_was_set()

    def _open(self) -> list[Engine]:
        return [engine for engine in self._engines if engine.is_open and not engine.leaving]

    # --- what is at work, and what is to come

    async def _settle(self, patience_s: float) -> None:
        """Wait until nothing is due any more and nobody is at work, but not for ever."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        quiet = 0
        while quiet < _QUIET_POLLS and loop.time() < until_s:
            await asyncio.sleep(_POLL_S)
            quiet = 0 if await self._is_busy() else quiet + 1

    async def _is_busy(self) -> bool:
        if self._at_work():
            return True
        for engine in self._open():
            due = Query(("suspended",), due_ms=self.due_ms(), limit=LIST_ROWS_MAX)
            if await engine.store.list(due):
                engine.waking.hint()
                return True
        # A run that was suspended meanwhile may neither wait in memory nor in the store yet.
        return self._at_work()

    def _at_work(self) -> bool:
        now_ms = self.due_ms()
        return any(
            engine.waking.busy or not all(_rests(run, now_ms) for run in engine.runs.values())
            for engine in self._open()
        )

    async def _next_due_ms(self, until_ms: int) -> int | None:
        now_ms = self.due_ms()
        found: list[int] = []
        for engine in self._open():
            for run in engine.runs.values():
                found += _times(run)
            query = Query(("suspended",), due_ms=until_ms, limit=LIST_ROWS_MAX)
            found += [due for row in await engine.store.list(query) for due in _stored_times(row)]
        return min((due for due in found if now_ms < due <= until_ms), default=None)


def _milliseconds(
    by: timedelta | None, days: float, hours: float, minutes: float, seconds: float
) -> int:
    more = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    total = (by or timedelta()) + more
    if total < timedelta():
        raise ValueError(f"a clock of a test goes forwards only: {total}")
    return int(total.total_seconds() * 1000)


def _times(run: LiveRun) -> Iterator[int]:
    """Give the times that a run in memory waits for."""
    for wait in run.waits.open.values():
        if wait.until_ms is not None:
            yield wait.until_ms
    if run.waits.deadline is not None:
        yield run.waits.deadline.at_ms


def _stored_times(row: RunRecord) -> Iterator[int]:
    """Give the time that a suspended run waits for, unless it just looks again then."""
    waits = orjson.loads(row.waiting or "[]")
    if row.wake_at_ms is None:
        return
    if not any(wait["kind"] in _TOLD for wait in waits):
        yield row.wake_at_ms
        return
    for wait in waits:
        if wait["until"] is not None:  # to the second
            yield int(datetime.fromisoformat(wait["until"]).timestamp() * 1000) + 999


def _rests(run: LiveRun, now_ms: int) -> bool:
    """Say whether a run does nothing but wait for what is still to come."""
    if run.gone is not None:
        return True
    if run.over or run.resting:  # until the store has it
        return run.ended or run.record.status == "suspended"
    if run.replay is not None or run.life.working or not run.waits.open:
        return False
    return all(due > now_ms for due in _times(run)) and run.durable_seq == run.seq - 1
