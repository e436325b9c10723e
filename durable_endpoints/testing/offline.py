"""A run that only replays: it begins nothing, and ends where its journal ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.labels import Labelling
from durable_endpoints.engine.replay import Replay
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import Scope
from durable_endpoints.engine.wait import Signal
from durable_endpoints.engine.waking import Waking
from durable_endpoints.errors import Diverged
from durable_endpoints.journal import Delivery, Journal, Recorded
from durable_endpoints.records import TERMINAL_KINDS, Entry, Kind

_NEVER_S = 1e9
_ENDS = TERMINAL_KINDS | {Kind.GAVE_UP}
_BEYOND_ALL = 1 << 60  # a place in the journal that no completion has


class OfflineJournal(Journal):
    """A journal whose unknown and unfinished calls wait for a completion that never comes."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(entries)
        self.fresh: dict[str, str] = {}  # calls that the journal holds no outcome of, by identity

    def claim(self, ident: str, name: str, check: int, args: bytes = b"") -> Recorded | None:
        """See `Journal.claim`; never None."""
        call = super().claim(ident, name, check, args)
        if call is not None and (call.deliveries or call.value is not None):
            waits = not call.deliveries and b'"kind"' in (call.value or b"")
            if not waits:  # what now() and the like were told needs no completion
                return call
        self.fresh[ident] = name
        policy = "" if call is None else call.policy
        value = None if call is None else call.value
        kind = Kind.STEP if value is None else Kind.WAIT
        entry = Entry(-1, kind, f"{ident} {name}", 0, 0, 0, b"", b"null")
        never = Delivery(entry, _BEYOND_ALL, 0, 0)
        if call is not None and call.policy:  # a stream that no item is recorded of
            return call
        return Recorded(ident, name, check, policy, [never], value)


class OfflineReplay(Replay):
    """A replay that is never over: what would come after it is the end."""

    def __init__(self, run: OfflineRun, journal: Journal) -> None:
        self._run = run
        super().__init__(
            journal, run.pace, run.log.loop, run.replayed, run.stalled,
            partial(run.cancellation.tell, run), _NEVER_S,
        )  # fmt: skip

    @property
    def moves(self) -> int:
        """How often it got further."""
        return self._moves

    async def turn(self, delivery: Delivery) -> None:
        """See `Replay.turn`."""
        if delivery.index == _BEYOND_ALL:
            await self.exhausted()
        await super().turn(delivery)

    def take(self, delivery: Delivery) -> None:
        """See `Replay.take`."""
        if delivery.index == _BEYOND_ALL:
            if delivery.entry.kind == Kind.WAIT:  # open: the handler goes on before it waits
                return
            raise self._run.goes_beyond()
        super().take(delivery)

    def is_past(self, scope: Scope) -> bool:  # noqa: ARG002
        """See `Replay.is_past`: what is stored is all that the run will do here."""
        return True

    async def exhausted(self) -> None:
        """Wait until all that is recorded has happened again, and end the replay."""
        await super().exhausted()
        task = self._run.task
        if self._run.cancellation.asked and task is not None and not task.cancelling():
            await self._run.log.loop.create_future()  # it is just being told that it is cancelled
        raise self._run.goes_beyond()


class OfflineRun(LiveRun):
    """A run over a copy of its journal. `ended` is how the handler ended: entry kind, payload."""

    __slots__ = ("beyond", "difference", "ending", "seen")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beyond: str | None = None
        self.difference: str | None = None
        self.ending: tuple[Kind, bytes] | None = None
        self.seen: OfflineReplay | None = None

    def begin_replay(self, journal: Journal, stall_s: float = _NEVER_S) -> None:  # noqa: ARG002
        """See `LiveRun.begin_replay`."""
        if journal.cancel_at is not None:
            self.cancellation.asked = True
        self.patches = dict.fromkeys(journal.patches, True)
        self.life.labelling = Labelling(self.record.labels, journal.labelled)
        self.pace.shared = self.pace.noted = journal.shared_at is not None
        self.replay = self.seen = OfflineReplay(self, journal)
        if journal.at_cancel or (journal.exhausted and self.cancellation.asked):
            self.cancellation.tell(self)

    def replayed(self) -> None:
        """Note that all that is recorded has happened again."""
        self.caught_up = True
        if self.cancellation.asked:
            self.cancellation.tell(self)
        self.wake()

    def stalled(self, difference: str) -> None:
        """End the replay: nothing moves any more."""
        self.diverge(difference)

    def append(
        self, kind: Kind, key: bytes = b"", payload: bytes = b"",
        check: int = 0, took_us: int = 0, args: bytes = b"",
    ) -> int:  # fmt: skip
        """Take the run's end; anything else is beyond the journal.

        Raises: Diverged.
        """
        if kind in _ENDS:
            self.ending = kind, payload
        elif kind not in (Kind.UNDOABLE, Kind.LABEL):  # those come and go with the code
            raise self.goes_beyond(_said(kind, key, payload))
        return super().append(kind, key, payload, check, took_us, args)

    def goes_beyond(self, what: str | None = None) -> Diverged:
        """End the replay: the code wants to do what is not recorded. Return what to raise."""
        if self.beyond is None and self.fenced is None:
            journal = None if self.replay is None else self.replay.journal
            fresh = journal.fresh if isinstance(journal, OfflineJournal) else {}
            if what is None:
                calls = [f"{name!r} (call {ident})" for ident, name in fresh.items()]
                what = ", ".join(calls[:3]) or "its response"
            self.beyond = f"went beyond the journal at {what}"
        return super().diverge(self.beyond or "the replay is over")

    def diverge(self, difference: str) -> Diverged:
        """See `LiveRun.diverge`."""
        if self.fenced is None and self.difference is None:
            self.difference = difference
        return super().diverge(difference)


def _said(kind: Kind, key: bytes, payload: bytes) -> str:
    if kind == Kind.CHUNK:
        return f"a piece of the body: {payload[:120]!r}"
    if kind == Kind.HEAD:
        head = orjson.loads(payload)
        return f"the beginning of a response, {head['status']}"
    if kind == Kind.EMIT:
        return f"an event: {payload[:120]!r}"
    name = key.decode().partition(" ")[2]
    return f"{kind.name.lower().replace('_', ' ')} {name!r}" if name else kind.name.lower()


class OfflineWaking(Waking):
    """Stands for the engine around a run that only replays: nothing reaches the outside."""

    async def begin_child(
        self, run: LiveRun, child_id: str, function: Callable[..., Any],
        args: tuple[Any, ...], kwargs: dict[str, Any], *, fresh: bool = False,
    ) -> None:  # fmt: skip
        """Begin nothing: what the child returned is recorded."""

    async def cancel_child(self, run: LiveRun, child_id: str) -> None:
        """Cancel nothing."""

    def child_awaited(self, run: LiveRun, child_id: str) -> None:
        """Ask nobody."""

    def turn_awaited(self, run: LiveRun) -> None:
        """Ask nobody."""

    def approval_path(self, run_id: str, ident: str, until_ms: int | None) -> str:  # noqa: ARG002
        """Return a path that leads nowhere: nobody is told of it."""
        return f"/approvals/{run_id}"

    async def send(self, run_id: str, signal: Signal) -> None:
        """Refuse: an effect that is recorded is not begun again, any other never is."""
        raise AssertionError(f"a replay sends no signals: {signal.name} to {run_id}")


def offline(engine: Engine) -> None:
    """Cut an engine off from everything but the run that it replays."""
    engine.waking = OfflineWaking(engine, _NEVER_S)


async def quiet(task: asyncio.Task[Any], run: OfflineRun, patience_s: float) -> None:
    """Wait for a handler's end; end the replay if it stands still for so many seconds.

    Counts in ticks of the event loop, so that somebody at a breakpoint may take their time.
    """
    tick_s = min(0.25, patience_s / 4)
    still_s, moves = 0.0, -1
    while not task.done():
        await asyncio.wait([task], timeout=tick_s)
        now = -1 if run.seen is None else run.seen.moves
        still_s = still_s + tick_s if now == moves else 0.0
        moves = now
        if still_s >= patience_s:
            left = "the handler did not come to its end"
            if run.seen is not None and not run.seen.journal.exhausted:
                left = run.seen.journal.difference()
            run.diverge(f"the replay stood still for {patience_s:g} s: {left}")
            task.cancel()
            await asyncio.wait([task], timeout=patience_s)
            return
