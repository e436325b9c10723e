"""What follows a failure in the middle of a stream: the provider's, not a crash of ours.

Items that the handler has taken cannot be taken back while it runs. So where the step's policy
is to begin anew, the run is suspended until the next attempt is due, and comes back over its
journal, by the same way as after a crash.
"""

from __future__ import annotations

import asyncio
from random import random

import orjson

from durable_endpoints.engine.outcomes import described
from durable_endpoints.engine.scope import Scope
from durable_endpoints.engine.steps import StepSpec
from durable_endpoints.engine.wait import Wait
from durable_endpoints.journal import Recorded
from durable_endpoints.records import Kind
from durable_endpoints.retry import classify, delay_hint, next_delay


class Again(Exception):
    """The stream is to be begun again, in the same handler."""


class StreamAttempts:
    """The attempts of one stream step, those of earlier processes included."""

    def __init__(
        self, scope: Scope, spec: StepSpec, key: bytes, call: Recorded | None, check: int
    ) -> None:
        self.items = 0  # recorded by this attempt
        self._scope = scope
        self._spec = spec
        self._key = key
        self._check = check
        self._failed = 0
        self._until_ms = 0
        self._began_ms = scope.run.log.now_ms()
        self._offset = 0
        self._place: str | None = None  # in the rate limit
        if call is not None and call.attempts:
            last = orjson.loads(call.attempts[-1].payload)
            self._failed = len(call.attempts)
            self._began_ms, self._until_ms = last["began"], last["until"]

    async def pause(self) -> None:
        """Wait until the next attempt is due; the run may leave memory meanwhile."""
        run = self._scope.run
        if self._until_ms > run.log.clock.due_ms():
            ident = self._key.decode().partition(" ")[0]
            wait = Wait(ident, self._key, "retry", self._spec.name, self._until_ms, fires=False)
            await run.waits.wait(wait)
            self._scope.check_life()

    async def begin(self) -> None:
        """Take a place in the rate limit."""
        run, limit = self._scope.run, self._spec.rate_limit
        self.items, self._offset = 0, run.offset
        if limit is None:
            return
        place = limit.key_of((), {})
        owner = run.record.principal or ""
        while left_s := await run.log.host.quotas.take(limit, place, owner, 1.0):
            self._until_ms = run.log.clock.due_ms() + int(left_s * 1000)
            await self.pause()
        self._place = place

    def end(self) -> None:
        """Give the place back."""
        limit = self._spec.rate_limit
        if limit is not None and self._place is not None:
            self._scope.run.log.host.quotas.give_back(limit, self._place)
            self._place = None

    async def failed(self, error: Exception) -> str:
        """Decide what follows: "failed" if the error stands, "truncated" if its items do.

        Raises: Again to begin anew here; does not return if the run begins anew.
        """
        run, spec, retry = self._scope.run, self._spec, self._spec.retry
        now_ms = run.log.now_ms()
        hint = delay_hint(error, now_ms / 1000)
        if spec.rate_limit is not None and hint and self._place is not None:
            run.log.host.quotas.feed(spec.rate_limit.name, self._place, hint)
        if retry is None:
            return "failed"
        self._failed += 1
        delay_s = next_delay(
            retry, self._failed, error, now_ms / 1000, self._began_ms / 1000,
            random(),  # noqa: S311
        )  # fmt: skip
        policy = spec.on_interrupt
        here = not self.items or policy == "resume"
        shown = run.offset != self._offset
        anew = policy in ("restart", "hold") or (
            policy == "auto" and (run.rewind_aware or not shown)
        )
        if classify(error, retry.on) != "retry" or delay_s is None or not (here or anew):
            return "truncated" if policy == "finalize" and self.items else "failed"
        self._until_ms = run.log.clock.due_ms() + int(delay_s * 1000)
        fields = {"until": self._until_ms, "began": self._began_ms, "error": described(error)}
        run.log.meters.retries += 1
        run.append(Kind.ATTEMPT, self._key, orjson.dumps(fields), self._check)
        if here:
            raise Again from error
        run.waits.leave(self._until_ms, spec.name)
        await asyncio.get_running_loop().create_future()  # until the suspension unwinds us
        return "failed"
