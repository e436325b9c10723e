"""What one run waits for: times, signals, decisions, children; and when it leaves memory for it.

A wait lives twice: as an entry in the journal, and here as a future while the run is in memory.
Whatever answers it is appended in the moment it answers, so races are decided by journal order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from durable_endpoints.engine.deadline import Deadline
from durable_endpoints.engine.wait import LISTED, Receipt, Signal, Wait, shown
from durable_endpoints.errors import AlreadyAnswered, Overloaded, SignalRefused
from durable_endpoints.limits import (
    CHILD_RECHECK_S,
    SIGNALS_KEPT_MAX,
    TIMER_RECHECK_S,
    WAITS_OPEN_MAX,
)
from durable_endpoints.records import Entry, Frame, Kind, WaitRecord

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun

CHILD_RECHECK_MS: Final = int(CHILD_RECHECK_S * 1000)
# What of a journal is about waits.
_TOLD: Final = frozenset({Kind.WAIT, Kind.SIGNAL, Kind.RECEIVED, Kind.FIRED})
# A wait shorter than this is not worth leaving memory for.
_WORTH_MS: Final = 10


class Waits:
    """The waits of one run in memory."""

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self.interrupted = False  # taken up after a process that ended on the way
        self._hurry_s = 0.0  # until the next look at such a run
        self.open: dict[str, Wait] = {}
        self.expected: set[str] = set()  # recorded waits that the replay has not come to yet
        self.answers: dict[str, int] = {}  # name of a one-answer wait -> seq of its answer
        self._answers_by_ident: dict[str, int] = {}
        self._kept: dict[str, list[tuple[int, bytes]]] = {}
        self._known: dict[tuple[str, str], int] = {}  # name and signal id -> seq
        self._data: dict[int, bytes] = {}  # seq -> data, of signals that may be asked for again
        self._opened: list[WaitRecord] = []
        self._answered: list[str] = []
        self._listed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None
        self.deadline: Deadline | None = None
        self._wake_at_ms: int | None = None
        self._waiting: str | None = None
        self._closed = False

    # --- from the journal

    def restore(self, entries: Sequence[Entry]) -> None:
        """Take up what the journal holds: open waits, signals, and who took them."""
        once: dict[str, str] = {}
        kept: dict[int, str] = {}
        for entry in entries:
            if entry.kind not in _TOLD:
                continue
            if entry.kind == Kind.WAIT:
                self.expected.add(entry.key)
                wanted = orjson.loads(entry.payload)
                if wanted.get("once"):
                    once[entry.key] = wanted["name"]
                if wanted["kind"] in LISTED:
                    self._listed.add(entry.key.partition(" ")[0])
            elif entry.kind == Kind.SIGNAL:
                signal = orjson.loads(entry.payload)
                self._known[entry.key, signal["id"]] = entry.seq
                self._data[entry.seq] = entry.payload
                kept[entry.seq] = entry.key
            else:
                self.expected.discard(entry.key)
                seq = orjson.loads(entry.payload or b"{}").get("signal")
                kept.pop(seq, None)
                if seq is not None:
                    self._answers_by_ident[entry.key.partition(" ")[0]] = seq
                    if entry.key in once:
                        self.answers[once[entry.key]] = seq
        for seq, name in kept.items():
            self._kept.setdefault(name, []).append((seq, self._data[seq]))

    def signal_data(self, seq: int) -> bytes:
        """Return the recorded payload of a signal."""
        return self._data[seq]

    # --- waiting

    def list_wait(self, wait: Wait, since_ms: int, summary: str | None) -> None:
        """Let those find a wait who look for it, as soon as it is durable."""
        self._listed.add(wait.ident)
        record = self._run.record
        self._opened.append(
            WaitRecord(
                record.run_id, wait.ident, wait.kind, wait.name, since_ms, wait.until_ms,
                wait.match, summary, record.principal,
            )
        )  # fmt: skip

    async def wait(self, wait: Wait) -> tuple[Kind, bytes]:
        """Wait; return what was appended: RECEIVED with its payload, or FIRED."""
        self.register(wait)
        return await self.outcome(wait)

    def register(self, wait: Wait) -> None:
        """Open a wait; what was kept for it answers it at once."""
        run = self._run
        self.expected.discard(wait.key.decode())
        if not self.expected:
            run.wake()
        if len(self.open) >= WAITS_OPEN_MAX:
            raise Overloaded(f"a run waits for at most {WAITS_OPEN_MAX:,} things at a time")
        wait.future = run.log.loop.create_future()
        self.open[wait.ident] = wait
        kept = self._kept.get(wait.name, []) if wait.kind in LISTED else []
        for seq, data in list(kept):
            if wait.fits(data):
                kept.remove((seq, data))
                if not kept:
                    del self._kept[wait.name]
                self._take(wait, seq)
                break
        if wait.kind == "child":
            run.log.host.child_awaited(run, wait.name)
        elif wait.kind == "turn":
            run.log.host.turn_awaited(run)
        if not wait.future.done():
            self._arm()

    async def outcome(self, wait: Wait) -> tuple[Kind, bytes]:
        """Wait for what answers an open wait; the run may leave memory meanwhile."""
        try:
            if not wait.future.done():
                self._consider()
            found = await wait.future
        except asyncio.CancelledError:
            self.drop(wait)
            raise
        if wait.ticket is not None:
            await self._run.pace.pass_on(wait.ticket)
        return found

    def drop(self, wait: Wait) -> None:
        """Close a wait: whoever waited is told to stop, perhaps as the answer came."""
        self.open.pop(wait.ident, None)
        if wait.ticket is not None:
            self._run.pace.skip(wait.ticket)
        self.give_up(wait.ident, wait.key)

    def give_up(self, ident: str, key: bytes) -> None:
        """Note that the handler does not wait for something any more; a suspension is none."""
        run = self._run
        if run.fenced is None and not run.over and not run.cancellation.asked:
            self.expected.discard(key.decode())
            self._unlist(ident)
            run.wake()

    def _unlist(self, ident: str) -> None:
        if ident in self._listed:
            self._listed.discard(ident)
            self._answered.append(ident)

    def _take(self, wait: Wait, seq: int) -> None:
        self._answers_by_ident[wait.ident] = seq
        if wait.once:
            self.answers[wait.name] = seq
        self.answer(wait, orjson.dumps({"signal": seq}))

    def answer(self, wait: Wait, payload: bytes) -> None:
        """End a wait by what came."""
        self._note_shared()
        self._run.append(Kind.RECEIVED, wait.key, payload)
        self._over(wait, Kind.RECEIVED, payload)

    def _note_shared(self) -> None:
        if len(self.open) > 1 or self._run.life.working:
            self._run.pace.share(self._run)

    def _over(self, wait: Wait, kind: Kind, payload: bytes) -> None:
        self.open.pop(wait.ident, None)
        self._unlist(wait.ident)
        if not wait.future.done():
            if self._run.pace.shared and wait.fires and not wait.early:
                wait.ticket = self._run.pace.ticket()
            wait.future.set_result((kind, payload))

    # --- signals

    def receive(self, signal: Signal) -> Receipt:
        """Take a signal into the journal, and give it to the first wait for it.

        Raises: AlreadyAnswered if its one answer was given; SignalRefused if the wait's type does
        not take it; Overloaded if too many are kept; Fenced.
        """
        known = self._known.get((signal.name, signal.signal_id))
        if known is not None:
            return Receipt("known", known)
        wait = next((wait for wait in self.open.values() if signal.suits(wait)), None)
        if wait is None:
            self._refuse_late(signal)
        fields: dict[str, Any] = {
            "id": signal.signal_id,
            "data": orjson.Fragment(signal.data),
            "by": signal.by,
        }
        fields["at"] = self._run.log.now_ms()
        if signal.kinds != LISTED:
            fields["kinds"] = sorted(signal.kinds)
        payload = orjson.dumps(fields)
        if wait is not None and wait.check is not None:
            try:
                wait.check(payload)
            except Exception as error:
                raise SignalRefused(signal.name, str(error)) from error
        if wait is None and sum(map(len, self._kept.values())) >= SIGNALS_KEPT_MAX:
            raise Overloaded(f"{SIGNALS_KEPT_MAX:,} signals wait to be taken by this run")
        seq = self._run.append(Kind.SIGNAL, signal.name.encode(), payload)
        self._known[signal.name, signal.signal_id] = seq
        self._data[seq] = payload
        if wait is None:
            self._kept.setdefault(signal.name, []).append((seq, payload))
            return Receipt("kept", seq)
        self._take(wait, seq)
        return Receipt("taken", seq)

    def turn_came(self) -> None:
        """Let the run begin: no other of its concurrency key is before it."""
        for wait in list(self.open.values()):
            if wait.kind == "turn" and not wait.future.done():
                self.answer(wait, b"{}")

    def look_back(self, signal: Signal) -> Receipt | None:
        """Return what became of a signal that comes again; None if it is new.

        Raises: AlreadyAnswered.
        """
        known = self._known.get((signal.name, signal.signal_id))
        if known is not None:
            return Receipt("known", known)
        self._refuse_late(signal)
        return None

    def _refuse_late(self, signal: Signal) -> None:
        """Raise if no wait can ever take a signal for which none is open."""
        answers, place = (
            (self.answers, signal.name)
            if signal.ident is None
            else (self._answers_by_ident, signal.ident)
        )
        if place in answers:
            raise AlreadyAnswered(signal.name, self._data[answers[place]])
        if signal.ident is not None:
            raise SignalRefused(signal.name, "the run does not wait for this any more")

    def child_ended(self, run_id: str, payload: bytes) -> None:
        """Answer whoever waits for a child run."""
        for wait in list(self.open.values()):
            if wait.kind == "child" and wait.name == run_id and not wait.future.done():
                self.answer(wait, payload)

    # --- times

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dues = [w.until_ms for w in self.open.values() if w.until_ms is not None]
        if dues and not self._closed:
            log = self._run.log
            left_s = max(0.0, (min(dues) - log.clock.due_ms()) / 1000)
            self._timer = log.loop.call_later(min(left_s, TIMER_RECHECK_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        run = self._run
        if run.fenced is not None or run.over:
            return
        now_ms = run.log.clock.due_ms()
        for wait in list(self.open.values()):
            if wait.until_ms is None or wait.until_ms > now_ms or wait.future.done():
                continue
            if wait.fires:
                self._note_shared()
                run.append(Kind.FIRED, wait.key)
            self._over(wait, Kind.FIRED, b"")
        self._arm()

    def look_again(self) -> None:
        """Look what is due now: the clock was set."""
        if self._timer is not None:
            self._timer.cancel()
            self._tick()
        if self.deadline is not None and not self._closed:
            self.deadline.look_again()

    # --- leaving memory

    def _consider(self) -> None:
        """Look, after the grace, whether the run does nothing but wait."""
        if self._grace is None and not self._closed:
            self._look_later(0.0)

    def _look_later(self, at_least_s: float) -> None:
        run = self._run
        # Until a run that was interrupted has left, or got further, each end of a process counts
        # as one of its own (I17): it has no grace. One that was woken is wanted here.
        hurried = self.interrupted and run.record.attempts > 0
        grace_s = run.log.host.suspend_grace_s
        if hurried:
            grace_s, self._hurry_s = min(grace_s, self._hurry_s), max(0.02, 2 * self._hurry_s)
        self._grace = run.log.loop.call_later(
            max(grace_s, at_least_s), self._check_idle, run.seq, hurried
        )

    def _check_idle(self, seq: int, hurried: bool) -> None:
        self._grace = None
        run = self._run
        if not self.open or run.fenced is not None or run.over:
            return
        busy = (
            run.life.working or run.replay is not None or run.cancellation.asked or run.seq != seq
        )
        busy = busy or run.durable_seq < run.seq - 1 or run.log.host.holds(run)
        if busy or (hurried and not run.record.attempts):
            self._look_later(0.02)
            return
        dues = [wait.until_ms for wait in self.open.values() if wait.until_ms is not None]
        dues += [CHILD_RECHECK_MS + run.log.clock.due_ms()] if self._needs_recheck() else []
        dues += [self.deadline.at_ms] if self.deadline is not None else []
        self._wake_at_ms = min(dues, default=None)
        soon_ms = run.log.clock.due_ms() + _WORTH_MS
        if self._wake_at_ms is not None and self._wake_at_ms < soon_ms:
            self._look_later(_WORTH_MS / 1000)
            return
        self._waiting = shown(self.open.values())
        run.suspend()
        self._let_tasks_go()

    def _needs_recheck(self) -> bool:
        return any(wait.kind in ("child", "turn") for wait in self.open.values())

    def leave(self, until_ms: int, name: str) -> None:
        """Have the run begin anew at a time, over its journal, whatever it is doing."""
        self._wake_at_ms = until_ms
        wait = Wait("", b"", "retry", name, until_ms)
        self._waiting = shown([wait])
        self._run.suspend()
        self._let_tasks_go()

    def _let_tasks_go(self) -> None:
        """End the tasks that the handler began, and nobody cancels: they would wait for ever."""
        for wait in self.open.values():
            wait.future.cancel()

    def limit(self, deadline_ms: int) -> None:
        """Fail the run if it is not at its end by then."""
        self.deadline = Deadline(self._run, deadline_ms)

    def add_to(self, frame: Frame) -> None:
        """Say in a frame what became of the waits."""
        frame.waits, frame.answered = tuple(self._opened), tuple(self._answered)
        self._opened, self._answered = [], []
        if frame.status == "suspended":
            frame.wake_at_ms, frame.waiting = self._wake_at_ms, self._waiting

    def close(self) -> None:
        """Stop the timers; no wait is listed any more."""
        self._answered = ["*"]
        self.stop()

    def stop(self) -> None:
        """Stop the timers, and end the tasks that wait: the handler is at its end."""
        self._closed = True
        for handle in (self._timer, self._grace):
            if handle is not None:
                handle.cancel()
        if self.deadline is not None:
            self.deadline.close()
        self._let_tasks_go()
