"""Steps that need more than one try or one moment: retries, rate limits, effects, compensations.

What a plain step does in one go happens here in stages, each of them in the journal: an effect's
intent before it begins (I3), every failed attempt with the time of the next one, the outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from hashlib import sha256
from random import random
from typing import Any, Final

import orjson

from durable_endpoints import failures
from durable_endpoints.engine.decisions import decide
from durable_endpoints.engine.observing import observed
from durable_endpoints.engine.outcomes import described
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.steps import (
    StepSpec,
    as_recorded,
    claim,
    deliver,
    hash_args,
    outcome,
    record,
    settle,
    timed,
)
from durable_endpoints.engine.undo import Undo
from durable_endpoints.engine.wait import Wait
from durable_endpoints.errors import DurableError, EffectAmbiguous, Escalate, Fenced
from durable_endpoints.journal import Recorded
from durable_endpoints.records import Entry, Kind
from durable_endpoints.retry import Retry, classify, delay_hint, next_delay

Function = Callable[..., Awaitable[Any]]
ACTING: ContextVar[bool] = ContextVar("durable_endpoints_acting", default=False)
KEY: ContextVar[str | None] = ContextVar("durable_endpoints_idempotency_key", default=None)
# One attempt and no more: how a step without a policy behaves.
_ONCE: Final = Retry(attempts=1)


def key_of(run_id: str, ident: str, name: str) -> str:
    """Return the idempotency key of a call: the same for every attempt, node and restart (I3)."""
    return sha256(f"{run_id}/{ident}/{name}".encode()).hexdigest()[:40]


def inside_plain_step() -> bool:
    """Say whether the caller is in a step that is no effect: it may run again after a crash."""
    scope = SCOPE.get()
    return scope is not None and scope.inert and not ACTING.get()


class Call:
    """One call of a step that goes in stages."""

    def __init__(
        self, scope: Scope, ident: str, spec: StepSpec, function: Function,
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        self.scope = scope
        self.run: LiveRun = scope.run
        self.ident = ident
        self.spec = spec
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.check, self.recorded_args = hash_args(spec, args, kwargs)
        self.key = f"{ident} {spec.name}".encode()
        self._failed = 0
        self._began_ms = self.run.log.now_ms()
        self._asked = 0  # how often a person was asked
        self._decided_seq = -1

    async def result(self) -> Any:
        """Return the call's outcome, recorded or made now."""
        run, spec = self.run, self.spec
        known = claim(run, self.ident, spec.name, self.check, self.recorded_args)
        failure: Exception | None = None
        done, value = False, None
        try:
            done, value = await self._replay_decisions(known)
        except DurableError as error:
            failure = error
        if known is not None and known.deliveries:
            return await self._recorded(known)
        await settle(run)
        # What a person decided since gives a new budget, and knows of what was begun.
        failed = [a for a in known.attempts if a.seq > self._decided_seq] if known else []
        begun = [seq for seq in known.intents if seq > self._decided_seq] if known else []
        if failed:
            last = orjson.loads(failed[-1].payload)
            self._failed, self._began_ms = len(failed), last["began"]
            await self._pause(last["until"], "retry")
        began_s = run.log.clock.monotonic_s()
        data = b""
        try:
            if not done and failure is None:
                value = await self._until_done(ambiguous=len(begun) > len(failed))
            data, value = spec.codec.record(value)
        except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
            failure = error
        self.scope.check_life()
        await settle(run)
        took_us = int((run.log.clock.monotonic_s() - began_s) * 1e6)
        seq = record(
            run, self.ident, spec, data, failure, self.check, took_us, self.recorded_args
        )  # fmt: skip
        if failure is None:
            self._undoable(seq, fresh=True)
        if run.strict or run.pace.shared:
            await deliver(run, seq)
        if failure is None:
            return value
        raised = as_recorded(spec, failure)
        self._gave_up(raised)
        raise raised

    # --- from the journal

    async def _recorded(self, known: Recorded) -> Any:
        run, delivery = self.run, known.deliveries[-1]
        entry: Entry = delivery.entry
        try:
            if run.replay is not None:
                await run.replay.turn(delivery)
        finally:  # also when it is cancelled while it waits: it has been done
            if entry.kind == Kind.STEP:
                self._undoable(entry.seq, fresh=False)
        if entry.kind == Kind.STEP:
            return outcome(self.spec, entry)
        raised = failures.load(self.spec.name, entry.payload)
        self._gave_up(raised)
        raise raised

    def _gave_up(self, error: Exception) -> None:
        if self.spec.retry is not None:
            self.run.given_up = error, self.key

    def _undoable(self, seq: int, *, fresh: bool) -> None:
        undo = self.spec.compensate
        if undo is None:
            return
        self.run.undo.append(Undo(seq, self.ident, self.spec.name, undo, self.args, self.kwargs))
        if fresh:
            self.run.append(Kind.UNDOABLE, self.key)

    async def _replay_decisions(self, known: Recorded | None) -> tuple[bool, Any]:
        """Take what persons were asked about this call before, in its turn; see `_ask`."""
        run = self.run
        decided: tuple[bool, Any] = (False, None)
        while run.replay is not None:
            asked = run.replay.journal.calls.get(f"{self.ident}!{self._asked}")
            if asked is None:
                break
            if asked.deliveries:
                self._decided_seq = asked.deliveries[-1].entry.seq
            summary = orjson.loads(asked.value or b"{}").get("summary") or self.spec.name
            try:
                decided = await self._ask(summary)
                if not asked.deliveries:  # decided just now
                    self._decided_seq = run.seq - 1
            except DurableError:
                if known is None or not known.deliveries:
                    raise
        return decided

    # --- live

    async def _until_done(self, *, ambiguous: bool) -> Any:
        """Attempt it until it is done, or nothing more is to be tried.

        Raises: what the last attempt raised.
        """
        if self.spec.effect and ambiguous:
            done, value = await self._resolve()
            if done:
                return value
        intended = ambiguous  # the recorded intent stands for the attempt that is made again
        while True:
            place = await self._take()
            try:
                try:
                    if self.spec.effect and not intended:
                        await self._intend()
                    intended = False
                    return await self._attempt(place)
                finally:
                    if self.spec.rate_limit is not None:
                        self.run.log.host.quotas.give_back(self.spec.rate_limit, place)
            except Exception as error:  # noqa: BLE001 - raised again if it stands
                done, value = await self._after(error)
                if done:
                    return value

    async def _intend(self) -> None:
        """Make the intent durable, and with it all that came before (I3)."""
        run = self.run
        seq = run.append(Kind.INTENT, self.key, b"", self.check, 0, self.recorded_args)
        life = self.scope.life
        life.working += 1  # so that nobody takes the wait for idleness
        try:
            await run.durable(seq)
            await run.log.host.settled(run)
        finally:
            life.working -= 1
        if not run.log.host.may_act():
            run.fence("the lease of this node is over")
            raise Fenced("the lease of this node is over")  # before anything of the effect runs
        self.scope.check_life()

    async def _resolve(self) -> tuple[bool, Any]:
        """Decide about an effect that had begun when the process ended: (is it done, result)."""
        spec = self.spec
        if spec.verify is not None:
            token = SCOPE.set(self.scope.inside_step())
            try:
                key = key_of(self.run.id, self.ident, spec.name)
                return True, await spec.verify(key, *self.args, **self.kwargs)
            except LookupError:  # the receiver has never heard of it
                return False, None
            finally:
                SCOPE.reset(token)
        if spec.on_ambiguous == "ask":
            return await self._ask(f"{spec.name} had begun when the server ended: did it happen?")
        if spec.on_ambiguous == "fail":
            raise EffectAmbiguous(
                f"effect {spec.name} had begun when the server ended; it may have taken place"
            )
        return False, None

    async def _attempt(self, place: str) -> Any:
        spec, run = self.spec, self.run
        limit = spec.rate_limit
        replay = run.replay
        if replay is not None:
            replay.working += 1
        life = self.scope.begin_work(self.ident)
        token = SCOPE.set(self.scope.inside_step())
        acting = ACTING.set(spec.effect)
        named = KEY.set(key_of(run.id, self.ident, spec.name))
        try:
            work = self.function(*self.args, **self.kwargs)
            if run.log.observer is not None:
                work = observed(run.log.observer.attempt(run, self.ident, spec), work)
            return await (work if spec.timeout_s is None else timed(work, spec.timeout_s))
        except Exception as error:
            hint = delay_hint(error, run.log.now_ms() / 1000)
            if limit is not None and hint:
                run.log.host.quotas.feed(limit.name, place, hint)
            raise
        finally:
            KEY.reset(named)
            ACTING.reset(acting)
            SCOPE.reset(token)
            life.end(self.ident)
            if replay is not None:
                replay.working -= 1

    async def _take(self) -> str:
        """Wait for the rate limit: a short while in memory, then suspended. Return its key."""
        run, limit = self.run, self.spec.rate_limit
        if limit is None:
            return ""
        place = limit.key_of(self.args, self.kwargs)
        host = run.log.host
        owner = run.record.principal or ""
        while True:
            patience_s = max(host.suspend_grace_s, 0.05)
            self.scope.life.working += 1
            try:
                left_s = await host.quotas.take(limit, place, owner, patience_s)
            finally:
                self.scope.life.working -= 1
            self.scope.check_life()
            if left_s == 0:
                return place
            await self._pause(run.log.clock.due_ms() + int(left_s * 1000), "quota")

    async def _pause(self, until_ms: int, kind: str) -> None:
        """Wait for the next attempt; the run may leave memory meanwhile."""
        if until_ms > self.run.log.clock.due_ms():
            wait = Wait(self.ident, self.key, kind, self.spec.name, until_ms, fires=False)
            await self.run.waits.wait(wait)
            self.scope.check_life()

    async def _after(self, error: Exception) -> tuple[bool, Any]:
        """Decide what follows a failed attempt: another one (False), or a person's result.

        Raises: the error, if it stands.
        """
        run, retry = self.run, self.spec.retry or _ONCE
        self.scope.check_life()
        verdict = classify(error, retry.on)
        if verdict == "escalate":
            return await self._ask(described(error), error)
        self._failed += 1
        now_ms = run.log.now_ms()
        delay_s = next_delay(
            retry, self._failed, error, now_ms / 1000, self._began_ms / 1000, random()  # noqa: S311
        )  # fmt: skip
        if verdict == "fatal" or delay_s is None:
            raise error
        until_ms = run.log.clock.due_ms() + int(delay_s * 1000)
        fields = {"until": until_ms, "began": self._began_ms, "error": described(error)}
        await settle(run)
        run.log.meters.retries += 1
        run.append(Kind.ATTEMPT, self.key, orjson.dumps(fields), self.check)
        await self._pause(until_ms, "retry")
        return False, None

    async def _ask(self, summary: str, error: Exception | None = None) -> tuple[bool, Any]:
        """Park the call for a person, who says `retry`, `fail` or gives the `result`."""
        ident = f"{self.ident}!{self._asked}"
        self._asked += 1
        decision = await decide(self.scope, ident, self.spec.name, summary)
        if decision["action"] == "result":
            return True, decision.get("result")
        if decision["action"] == "fail":
            raise error or Escalate(summary)
        self._failed = 0
        return False, None


async def run_attempts(
    scope: Scope, ident: str, spec: StepSpec, function: Function,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """Run a coroutine function as a step that may need more than one attempt."""
    try:
        return await Call(scope, ident, spec, function, args, kwargs).result()
    except asyncio.CancelledError:
        scope.check_life()
        raise
