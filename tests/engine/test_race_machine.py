"""Cancels, signals, times, crashes and completions race as hypothesis draws them.

A run, whatever comes first, has one terminal entry; no signal, timer, attempt or compensation is
lost or done twice. `RACES=2000 pytest tests/engine/test_race_machine.py` for a long search.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from durable_endpoints.engine import recovery
from durable_endpoints.errors import AlreadyAnswered, Fenced, Overloaded, RunEnded, SignalRefused
from durable_endpoints.records import Kind, RunRecord
from durable_endpoints.stores.protocol import Query, WaitQuery
from durable_endpoints.testing import TestClock
from tests.engine.hopping import HoppingStore, HoppingWorld
from tests.engine.race_checks import (
    Sent,
    check_done,
    check_journal,
    check_signals,
    kept_signals,
    open_waits,
)
from tests.engine.race_programs import HOUR, NAMES, OUTSIDE, Outside, performs, programs

EXAMPLES = int(os.environ.get("RACES", "40"))
REFUSALS = (RunEnded, AlreadyAnswered, SignalRefused, Overloaded)
recovery.RECOVERY_BACKOFF_S = (0.0,) * 6  # type: ignore[attr-defined]
_ROUNDS = 60
_PROMPT_S = 10.0  # the engine waits for a run for 15 s; a busy machine may stand still for 3
_CUT = "Task was destroyed but it is pending"
ANSWERS: dict[str, Any] = {
    "approval": {"approved": True}, "decision": {"action": "retry"}, "signal": 0,
}  # fmt: skip
kinds = st.sampled_from(("signal", "approval", "decision"))
hops = st.integers(0, 12)


class Races(RuleBasedStateMachine):
    """One store, one process after another, and people who all act at once."""

    @initialize(seed=st.integers(0, 2**32), grace_s=st.sampled_from((0, 0.02, 1)))
    def begin(self, seed: int, grace_s: float) -> None:
        chance = random.Random(seed)
        most = chance.choice((1, 3, 8))
        store = HoppingStore(lambda _: (chance.randrange(most), chance.randrange(most)))
        self.clock = TestClock()
        self.one = HoppingWorld(store, grace_s=grace_s, clock=self.clock)
        self.outside = OUTSIDE[0] = Outside()
        self.sent: dict[str, Sent] = {}
        self.signals = 0
        self.up = True
        self.runner = asyncio.Runner()
        self.loop_errors: list[str] = []
        self.runner.get_loop().set_exception_handler(
            lambda _, context: self.loop_errors.append(str(context))
        )
        self.run(self.one.boot())

    def run(self, work: Awaitable[Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(30):
                return await work

        return self.runner.run(limited())

    # --- what people do

    @precondition(lambda self: self.up and len(self.sent) < 4)
    @rule(program=programs, turns=hops)
    def start(self, program: list[Any], turns: int) -> None:
        async def act() -> str:
            run = await self.one.start(performs, program)
            await self._turns(turns)
            return run.id

        run_id = self.run(act())
        self.sent[run_id] = Sent()
        note(f"{run_id[-4:]} performs {program}")

    @precondition(lambda self: self.up and self.sent)
    @rule(data=st.data(), count=st.integers(1, 4))
    def act_together(self, data: st.DataObject, count: int) -> None:
        acts = [self._draw_act(data) for _ in range(count)]

        async def act() -> None:
            outcomes = await asyncio.gather(*(one() for one in acts), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

        self.run(act())

    def _draw_act(self, data: st.DataObject) -> Callable[[], Awaitable[None]]:
        run_id = data.draw(st.sampled_from(sorted(self.sent)))
        turns = data.draw(hops)
        what = data.draw(st.sampled_from(("signal", "again", "cancel", "time", "retry", "look")))

        async def after() -> None:
            await self._turns(turns)

        if what in ("signal", "again"):
            kind = data.draw(kinds)
            name = "odd" if kind == "decision" else data.draw(st.sampled_from(NAMES))
            if what == "again" and self.sent[run_id].accepted:
                ident = data.draw(st.sampled_from(sorted(self.sent[run_id].accepted)))
                name = self.sent[run_id].accepted[ident]
            else:
                self.signals += 1
                ident = f"s{self.signals}"
            return lambda: self._then(after, lambda: self._signal(run_id, name, kind, ident))
        if what == "cancel" and data.draw(st.booleans()):
            return lambda: self._then(after, lambda: self._cancel(run_id))
        if what == "retry":
            return lambda: self._then(after, lambda: self._retry(run_id))
        if what == "look":
            return lambda: self._then(after, self._look)
        hours = data.draw(st.sampled_from((0.5, 1, 5)))

        async def pass_time() -> None:
            self.clock.advance(seconds=hours * HOUR)

        return lambda: self._then(after, pass_time)

    @staticmethod
    async def _then(
        first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]]
    ) -> None:
        await first()
        await second()

    async def _signal(self, run_id: str, name: str, kind: str, ident: str) -> None:
        sent = self.sent[run_id]
        data = ANSWERS[kind] if kind != "signal" else int(ident[1:])
        try:
            run = await self.one.run_of(run_id)
            async with asyncio.timeout(_PROMPT_S):
                await run.signal(name, data, signal_id=ident)
        except TimeoutError:
            live = self.one.engine.runs.get(run_id)
            waits = live and (live.waits.expected, live.waits.open, live.caught_up, live.replay)
            for entry in await self.one.entries(run_id):
                note(f"{entry.seq} {entry.kind.name} {entry.key} {entry.payload[:200]!r}")
            raise AssertionError(f"a signal to {run_id} was held up: {waits}") from None
        except REFUSALS:
            if ident not in sent.accepted:
                sent.refused.add(ident)
        except Fenced:
            sent.unknown.add(ident)
        else:
            sent.accepted[ident] = name
            sent.refused.discard(ident)

    async def _cancel(self, run_id: str) -> None:
        await (await self.one.run_of(run_id)).cancel()
        self.sent[run_id].cancelled = True
        record = await self.one.store.get(run_id)
        assert record is not None
        entries = await self.one.entries(run_id)
        ended = record.status in ("completed", "failed", "cancelled")
        assert ended or any(entry.kind == Kind.CANCEL for entry in entries), "a cancel was lost"

    async def _retry(self, run_id: str) -> None:
        await (await self.one.run_of(run_id)).retry()

    async def _look(self) -> None:
        await self.one.engine.waking.wake_due()

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    # --- what happens to the process

    @precondition(lambda self: self.up)
    @rule(hours=st.sampled_from((0.1, 1, 5)), turns=hops)
    def time_passes(self, hours: float, turns: int) -> None:
        async def act() -> None:
            self.clock.advance(seconds=hours * HOUR)
            await self._turns(turns)

        self.run(act())

    @precondition(lambda self: self.up)
    @rule(turns=hops)
    def crash(self, turns: int) -> None:
        async def act() -> None:
            await self._turns(turns)
            self.outside.crashes += 1
            await self.one.crash()

        self.run(act())
        self.up = False

    @precondition(lambda self: not self.up)
    @rule(hours=st.sampled_from((0, 2)), turns=hops)
    def boot(self, hours: float, turns: int) -> None:
        async def act() -> None:
            self.clock.advance(seconds=hours * HOUR)
            await self.one.boot()
            await self._turns(turns)

        self.run(act())
        self.up = True

    @precondition(lambda self: self.up)
    @rule()
    def comes_to_rest(self) -> None:
        """Nobody is left behind: no answer that a wait could have, no time that is over."""
        self.run(self._rest())

    async def _rest(self) -> None:
        await self.clock.skip(seconds=0, patience=5)
        for record in await self.one.store.list(Query(("running", "suspended"), limit=500)):
            entries = await self.one.entries(record.run_id)
            waits, kept = open_waits(entries), kept_signals(entries)
            live = self.one.engine.runs.get(record.run_id)
            open_ = None if live is None else {w.key.decode() for w in live.waits.open.values()}
            for key, wait in waits.items():
                if open_ is not None and key not in open_:
                    continue  # given up by its handler
                if record.status == "suspended" and key not in await self._listed(record.run_id):
                    continue
                where = f"run {record.run_id} {record.status}: {key} {wait}"
                until = wait["until"]
                assert not isinstance(until, int) or until > self.clock.due_ms(), f"{where} is due"
                assert wait["kind"] != "signal" or not kept.get(str(wait["name"])), (
                    f"{where} could have one of {kept}"
                )

    async def _listed(self, run_id: str) -> set[str]:
        waits = await self.one.store.waits(WaitQuery(run_id=run_id, limit=500))
        return {f"{wait.ident} {wait.kind}:{wait.name}" for wait in waits}

    # --- the end

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            if not self.up:
                self.run(self.one.boot())
            self.run(self._finish())
            self.run(self._judge())
            self.run(self.one.engine.close())
            assert not self.one.failures, self.one.failures
            # A crash cuts tasks off anywhere; without one, nothing may be left lying about.
            crashed = self.outside.crashes
            cut = ("Fenced(", _CUT) if crashed else ()
            errors = [e for e in self.loop_errors if not any(word in e for word in cut)]
            assert not errors, errors
        finally:
            self.runner.close()

    async def _finish(self) -> None:
        """Answer everything and let all time pass, until every run is at its end."""
        left: list[RunRecord] = []
        for _ in range(_ROUNDS):
            await self.one.recovery.sweep()
            await self.clock.skip(hours=6, patience=5)
            rows = await self.one.store.list(Query(limit=500))
            left = [row for row in rows if row.status in ("running", "suspended")]
            if not left:
                return
            for row in rows:
                if row.status == "dead":
                    await (await self.one.run_of(row.run_id)).cancel()
            for wait in await self.one.store.waits(WaitQuery(limit=500)):
                if (row_ := await self.one.store.get(wait.run_id)) and row_.status != "dead":
                    self.sent.setdefault(wait.run_id, Sent())
                    self.signals += 1
                    await self._signal(wait.run_id, wait.name, wait.kind, f"s{self.signals}")
        for row in left:
            note(f"{row}")
            for entry in await self.one.entries(row.run_id):
                note(f"{entry.seq} {entry.kind.name} {entry.key} {entry.payload[:200]!r}")
            live = self.one.engine.runs.get(row.run_id)
            note(f"in memory: {live and (live.fenced, live.task, live.waits.open, live.replay)}")
            note(f"{await self.one.store.waits(WaitQuery(run_id=row.run_id))}")
            note(f"{self.sent.get(row.run_id)}")
        raise AssertionError(f"stuck: {[row.run_id for row in left]}")

    async def _judge(self) -> None:
        for record in await self.one.store.list(Query(limit=500)):
            entries = await self.one.entries(record.run_id)
            sent = self.sent.get(record.run_id, Sent())
            done = [one for one in self.outside.done if one.run_id == record.run_id]
            try:
                check_journal(record, entries)
                check_signals(entries, sent)
                check_done(record, entries, done, self.outside.crashes)
            except AssertionError as error:
                for entry in entries:
                    note(f"{entry.seq} {entry.kind.name} {entry.key} {entry.payload[:200]!r}")
                for one in done:
                    note(str(one))
                raise AssertionError(f"run {record.run_id} {record.status}: {error}") from error
            parent = record.parent and await self.one.store.get(record.parent)
            if parent and parent.status in ("cancelled", "failed"):
                assert record.status not in ("running", "suspended", "dead"), "an orphan"


TestRaces = pytest.mark.timeout(0 if EXAMPLES > 100 else 120)(Races.TestCase)
Races.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=14, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink) if "SHRINK" in os.environ else (Phase.generate,),
)  # fmt: skip
