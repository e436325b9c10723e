"""What handlers call to wait: `sleep`, `sleep_until`, `wait_for_signal`, `send_signal`, `approval`.

A run that does nothing else leaves memory meanwhile; outside a run the times are plain sleeps.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson

from durable_endpoints.codec import Codec, dumps
from durable_endpoints.engine.attempts import KEY
from durable_endpoints.engine.decisions import Wanted, answer, answered, begin, durably
from durable_endpoints.engine.effects import effect
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.engine.wait import Signal, encode_data
from durable_endpoints.errors import NotDurable
from durable_endpoints.failures import plain
from durable_endpoints.limits import FAR_MS, NAME_CHARS_MAX
from durable_endpoints.records import Kind

Seconds = float | timedelta


def _scope_of(what: str) -> Scope | None:
    scope = SCOPE.get()
    if scope is not None and scope.inert:
        raise NotDurable(f"{what} is for handlers: inside a step nothing can wait durably")
    return scope


def _until(run: LiveRun, delay: Seconds) -> int:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if not math.isfinite(seconds):
        raise ValueError(f"a wait of {seconds} seconds: give a finite number")
    return min(run.log.clock.due_ms() + max(0, math.ceil(seconds * 1000)), FAR_MS)


async def sleep(delay: Seconds) -> None:
    """Wait so many seconds, or a timedelta, durably: the time goes on while nothing runs.

    Ends never early, and at most a second late while a server is up.
    """
    scope = _scope_of("sleep")
    if scope is None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        await asyncio.sleep(seconds)
        return
    ident = scope.next_call()
    await durably(scope, ident, Wanted("timer", "sleep", _until(scope.run, delay)))


async def sleep_until(when: datetime) -> None:
    """Wait durably until a time.

    Raises: ValueError for a datetime without a time zone.
    """
    if when.utcoffset() is None:
        raise ValueError(f"sleep_until({when!r}): give the datetime a time zone")
    scope = _scope_of("sleep_until")
    if scope is None:
        await asyncio.sleep(max(0.0, (when - datetime.now(UTC)).total_seconds()))
        return
    ident = scope.next_call()
    until_ms = math.ceil(when.timestamp() * 1000)
    await durably(scope, ident, Wanted("timer", "sleep", until_ms))


async def wait_for_signal(
    name: str,
    *,
    timeout: Seconds | None = None,
    type: Any = None,  # noqa: A002 - what a caller would look for
    match: Mapping[str, Any] | None = None,
    once: bool = False,
) -> Any:
    """Wait durably for a signal of this name, and return its data.

    `timeout`: seconds or a timedelta. `type`: what the data must be (a dataclass, a pydantic
    model, a TypedDict, …); other data is refused to its sender. `match`: fields by which
    `POST events/{name}` finds this run; `{}`: every event of the name, None: no event. `once`:
    one answer ends the matter, a second one is refused with the first; otherwise a signal that
    comes before the wait for it is kept. A timeout around it (`asyncio.timeout`) goes with the
    handler when the run leaves memory: use `timeout`.

    Raises: SignalTimeout; NotDurable outside a run.
    """
    check_name(name)
    scope = _scope_of("wait_for_signal")
    if scope is None:
        raise NotDurable("there is no run here that a signal could reach: use @durable")
    ident = scope.next_call()
    codec = Codec(f"signal {name}", type, checked=True) if type is not None else None
    wanted = Wanted(
        "signal", name, None if timeout is None else _until(scope.run, timeout), once,
        None if match is None else dumps(dict(match), f"match of signal {name}").decode(),
        check=None if codec is None else lambda payload: codec.decode(_data(payload)),
    )  # fmt: skip
    signal = await answered(scope, ident, wanted)
    return signal["data"] if codec is None else codec.decode(orjson.dumps(signal["data"]))


def _data(payload: bytes) -> bytes:
    return orjson.dumps(orjson.loads(payload)["data"])


def check_name(name: str) -> None:
    """Raise ValueError for what cannot name a signal."""
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable() or "/" in name:
        raise ValueError(
            f"a signal's name has 1 to {NAME_CHARS_MAX} printable characters, no slash: {name!r}"
        )


async def send_signal(run_id: str, name: str, data: Any = None) -> None:
    """Give another run a signal, as an effect: never of a run that a crash undoes, and once.

    Raises: RunNotFound, RunEnded, AlreadyAnswered, SignalRefused; NotDurable outside a run: use
    `Engine.signal` there, or the run's signals route.
    """
    check_name(name)
    encoded = encode_data(name, data)
    scope = _scope_of("send_signal")
    if scope is None:
        raise NotDurable("there is no run here: use Engine.signal, or POST …/signals/{name}")
    host = scope.run.log.host
    sender = scope.run.id

    async def send(run_id: str, name: str) -> None:
        key = KEY.get() or uuid4().hex
        await host.send(run_id, Signal(key, name, encoded, f"run {sender}"))

    await effect.run(f"send_signal {name}", send, run_id, name)


@dataclass(frozen=True, slots=True)
class Approval:
    """What a person decided: `approved`, by whom if known, when, and what they said to it."""

    approved: bool
    by: str | None
    at: datetime
    comment: str

    def __bool__(self) -> bool:
        return self.approved


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What a person is asked: `path` is where, below the app's own address; its link is secret."""

    run_id: str
    name: str
    summary: str
    path: str
    expires_at: datetime | None


async def approval(
    name: str,
    *,
    summary: str = "",
    timeout: Seconds | None = None,
    notify: Callable[[ApprovalRequest], Awaitable[Any]] | None = None,
) -> Approval:
    """Ask a person, and wait durably for the decision.

    `summary` tells them what for. `notify` is called once, as an effect, with the request: mail
    its link to whom it concerns. Open approvals are listed by `GET approvals`.

    Raises: SignalTimeout after `timeout` (seconds or a timedelta); NotDurable outside a run.
    """
    check_name(name)
    scope = _scope_of("approval")
    if scope is None:
        raise NotDurable("there is no run here that could wait for an approval: use @durable")
    run = scope.run
    ident = scope.next_call()
    until_ms = None if timeout is None else _until(run, timeout)
    wanted = Wanted("approval", name, until_ms, True, None, plain(summary), _check_approval)
    # Open before anybody is told: they may be faster than who tells them.
    begun = await begin(scope, ident, wanted, early=True)
    if notify is not None:
        until_ms = _recorded_until(run, ident, until_ms)
        expires = None if until_ms is None else datetime.fromtimestamp(until_ms / 1000, UTC)
        path = run.log.host.approval_path(run.id, ident, until_ms)
        request = ApprovalRequest(run.id, name, summary, path, expires)
        notifying = notify

        async def tell(_: str) -> None:
            await notifying(request)

        await effect.run(f"notify {name}", tell, name)
    signal = await answer(scope, begun, wanted)
    data = signal["data"]
    at = datetime.fromtimestamp(signal["at"] / 1000, UTC)
    return Approval(data["approved"], signal["by"], at, data.get("comment") or "")


def _recorded_until(run: LiveRun, ident: str, until_ms: int | None) -> int | None:
    """Return the time that the journal holds for a wait; that of a new one is given."""
    if run.replay is not None:
        call = run.replay.journal.calls.get(ident)
        if call is not None and call.value is not None:
            until: int | None = orjson.loads(call.value)["until"]
            return until
    return until_ms


def _check_approval(payload: bytes) -> None:
    data = orjson.loads(payload)["data"]
    if not isinstance(data, dict) or not isinstance(data.get("approved"), bool):
        raise ValueError(  # noqa: TRY004
            'give {"approved": true} or {"approved": false}, a "comment" if you like'
        )


def patched(change_id: str) -> bool:
    """Say whether a run goes the new way of a changed piece of code.

    True for runs that come here first under the changed code, False for those that were past it,
    or may have been, as a task beside it has gone on: `if patched("ask-twice"): …new… else: …old…`.
    Remove the old way when no such run is left. Outside a run: True.
    """
    check_name(change_id)
    scope = SCOPE.get()
    if scope is None:
        return True
    run = scope.run
    known = run.patches.get(change_id)
    if known is None:
        replay = run.replay
        known = run.patches[change_id] = replay is None or not replay.is_past(scope)
        if known:
            run.append(Kind.PATCH, change_id.encode())
    return known
