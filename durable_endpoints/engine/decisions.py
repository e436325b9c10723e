"""Durable waits: for a time, for a signal, for a person's decision, for a child run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from durable_endpoints.engine.scope import Scope
from durable_endpoints.engine.steps import claim, settle
from durable_endpoints.engine.wait import LISTED, Wait
from durable_endpoints.errors import SignalTimeout
from durable_endpoints.journal import Delivery
from durable_endpoints.records import Kind

ACTIONS: Final = ("retry", "fail", "result")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a wait is for."""

    kind: str
    name: str
    until_ms: int | None = None
    once: bool = False
    match: str | None = None
    summary: str | None = None
    check: Callable[[bytes], object] | None = None

    @property
    def label(self) -> str:
        """The name of the call in the journal."""
        return self.name if self.kind == "timer" else f"{self.kind}:{self.name}"


async def durably(scope: Scope, ident: str, wanted: Wanted) -> tuple[Kind, bytes]:
    """Wait; return RECEIVED with what was received, or FIRED when the time has come."""
    return await finish(scope, await begin(scope, ident, wanted))


async def begin(
    scope: Scope, ident: str, wanted: Wanted, *, early: bool = False
) -> Wait | Delivery:
    """Begin a wait: from now on it can be answered. Return what `finish` takes.

    `early`: the handler goes on before it waits; a recorded wait then is open while it replays.
    """
    run = scope.run
    call = claim(run, ident, wanted.label, 0)
    if call is not None and call.deliveries:
        if early and run.replay is not None:  # what is answered early is not waited for
            run.replay.take(call.deliveries[0])
        return call.deliveries[0]
    key = f"{ident} {wanted.label}".encode()
    if not early or call is None:
        try:
            await settle(run)
        except asyncio.CancelledError:
            run.waits.give_up(ident, key)
            raise
    until_ms = wanted.until_ms
    wait = Wait(
        ident, key, wanted.kind, wanted.name, until_ms, wanted.once, wanted.check,
        match=wanted.match, early=early,
    )  # fmt: skip
    if call is None:
        fields: dict[str, Any] = {
            "kind": wanted.kind,
            "name": wanted.name,
            "until": until_ms,
            "once": wanted.once,
        }
        if wanted.summary:
            fields["summary"] = wanted.summary
        kind = Kind.TIMER if wanted.kind == "timer" else Kind.WAIT
        run.append(kind, key, orjson.dumps(fields))
        if wanted.kind in LISTED:
            run.waits.list_wait(wait, run.log.now_ms(), wanted.summary)
    else:
        wait.until_ms = orjson.loads(call.value or b"{}").get("until")
    run.waits.register(wait)
    return wait


async def finish(scope: Scope, begun: Wait | Delivery) -> tuple[Kind, bytes]:
    """Wait for the answer; see `durably`."""
    run = scope.run
    if isinstance(begun, Delivery):
        if run.replay is not None and not begun.done:
            await run.replay.turn(begun)
        return begun.entry.kind, begun.entry.payload
    try:
        await settle(run)
    except asyncio.CancelledError:
        run.waits.drop(begun)
        raise
    found = await run.waits.outcome(begun)
    scope.check_life()
    return found


async def answered(scope: Scope, ident: str, wanted: Wanted) -> dict[str, Any]:
    """Wait for a signal; return it: `data`, `by`, `at` (milliseconds since 1970 UTC), `id`.

    Raises: SignalTimeout.
    """
    return await answer(scope, await begin(scope, ident, wanted), wanted)


async def answer(scope: Scope, begun: Wait | Delivery, wanted: Wanted) -> dict[str, Any]:
    """Wait for the signal of a wait that was begun; see `answered`."""
    kind, payload = await finish(scope, begun)
    if kind == Kind.FIRED:
        raise SignalTimeout(wanted.name)
    seq = orjson.loads(payload)["signal"]
    signal: dict[str, Any] = orjson.loads(scope.run.waits.signal_data(seq))
    return signal


async def decide(scope: Scope, ident: str, name: str, summary: str) -> dict[str, Any]:
    """Ask a person what to do about a step: `{"action": "retry" | "fail" | "result", …}`."""
    wanted = Wanted("decision", name, once=True, summary=summary, check=_check_decision)
    signal = await answered(scope, ident, wanted)
    decision: dict[str, Any] = signal["data"]
    return decision


def _check_decision(payload: bytes) -> None:
    data = orjson.loads(payload)["data"]
    if not isinstance(data, dict) or data.get("action") not in ACTIONS:
        raise ValueError(f'give {{"action": one of {", ".join(ACTIONS)}}}, a result with "result"')
