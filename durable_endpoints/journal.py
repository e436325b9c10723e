"""Replay, without any I/O: what the journal holds, whose turn it is, and where the code differs.

A step's identity is `<task path>:<ordinal>`: the ordinal is taken when the step is called, the
path does not depend on scheduling (I12). Completions are delivered in journal order, each after
the events that were recorded before it, so a concurrent handler sees what it saw at first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from durable_endpoints.errors import Diverged
from durable_endpoints.records import Entry, Kind
from durable_endpoints.standing import standing

DELIVERED: Final = frozenset(
    {
        Kind.STEP, Kind.STEP_FAILED, Kind.ITEM, Kind.STREAM_END, Kind.FIRED, Kind.RECEIVED
    }
)  # fmt: skip
# Kept with the call they belong to: what it was told, or what it waits for.
_KEPT: Final = frozenset({Kind.VALUE, Kind.TIMER, Kind.WAIT, Kind.SPAWN})
_SHOWN: Final = 120


@dataclass(slots=True)
class Delivery:
    """One recorded completion, and what must have happened again before it."""

    entry: Entry
    index: int
    bodies_before: int
    emits_before: int
    done: bool = False


@dataclass(slots=True)
class Recorded:
    """A call as the journal holds it."""

    ident: str
    name: str
    check: int
    policy: str = ""  # on_interrupt of a stream step
    deliveries: list[Delivery] = field(default_factory=list)
    value: bytes | None = None  # of now() and uuid7(); what a wait waits for
    attempts: list[Entry] = field(default_factory=list)  # that failed, and will be followed
    intents: list[int] = field(default_factory=list)  # seqs: an effect may have begun
    claimed: bool = False
    args: bytes = b""
    seq: int = 0  # of its first entry

    @property
    def ended(self) -> bool:
        """Whether its last outcome is there; an interrupted stream step has none."""
        return bool(self.deliveries) and self.deliveries[-1].entry.kind != Kind.ITEM

    def goes_on(self, *, here: bool) -> bool:
        """Say whether a stream was asked for an item that its consumer has yet to ask for.

        Who asks for an item has got the one before it; `here`: its consumer is who looks.
        """
        if not self.deliveries or self.deliveries[0].entry.kind != Kind.ITEM:
            return False
        return sum(not delivery.done for delivery in self.deliveries) > (0 if here else 1)


class Journal:
    """The replay cursor over one run's entries."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.calls: dict[str, Recorded] = {}
        self.head: bytes | None = None
        self.body_ended = False
        self.shared_at: int | None = None  # the completion from which on they keep distance
        self.patches: set[str] = set()
        self.labelled: set[str] = set()  # keys of calls that labelled the run
        # How many completions, and which calls, came before the run was cancelled.
        self.cancel_at: tuple[int, frozenset[str]] | None = None
        self._unmade: set[str] = set()  # calls that were at work then, and had no entry yet
        self._limit = sys.maxsize  # of what is delivered before the handler is told of it
        self._deliveries: list[Delivery] = []
        self._bodies: list[bytes] = []
        self._emits: dict[str, tuple[int, bytes]] = {}  # identity -> place, content
        self._emitted: set[int] = set()
        self._next = 0
        self._body = 0
        self._body_at = 0
        self._emit = 0
        self._head_matched = False
        counted = standing(entries)
        self.voided = len(entries) - len(counted)
        self._read(counted)

    def _read(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.kind in DELIVERED:
                delivery = Delivery(
                    entry, len(self._deliveries), len(self._bodies), len(self._emits)
                )
                self._deliveries.append(delivery)
                self._call_of(entry).deliveries.append(delivery)
            elif entry.kind == Kind.HEAD:
                self.head = entry.payload
            elif entry.kind == Kind.CHUNK:
                self._bodies.append(entry.payload)
            elif entry.kind == Kind.EMIT:
                self._emits[entry.key] = (len(self._emits), entry.payload)
            elif entry.kind == Kind.BODY_END:
                self.body_ended = True
            elif entry.kind == Kind.CANCEL and self.cancel_at is None:
                self.cancel()
                at_work = orjson.loads(entry.args).get("at", ()) if entry.args else ()
                self._unmade = {ident for ident in at_work if ident not in self.calls}
            else:
                self._read_kept(entry)

    def _read_kept(self, entry: Entry) -> None:
        """Read what is neither delivered nor seen by readers."""
        if entry.kind == Kind.STREAM:
            self._call_of(entry).policy = entry.payload.decode()
        elif entry.kind in _KEPT:
            self._call_of(entry).value = entry.payload
        elif entry.kind == Kind.ATTEMPT:
            self._call_of(entry).attempts.append(entry)
        elif entry.kind == Kind.INTENT:
            self._call_of(entry).intents.append(entry.seq)
        elif entry.kind == Kind.SHARED and self.shared_at is None:
            self.shared_at = len(self._deliveries)
        elif entry.kind == Kind.PATCH:
            self.patches.add(entry.key)
        elif entry.kind == Kind.LABEL:
            self.labelled.add(entry.key)

    def _call_of(self, entry: Entry) -> Recorded:
        ident, _, name = entry.key.partition(" ")
        call = self.calls.get(ident)
        if call is None:
            call = self.calls[ident] = Recorded(
                ident, name, entry.check, args=entry.args, seq=entry.seq
            )  # fmt: skip
        return call

    # --- calls

    def claim(self, ident: str, name: str, check: int, args: bytes = b"") -> Recorded | None:
        """Return what is recorded of a call; None if it is new. `args` is for the message.

        Raises: Diverged if the journal holds another call in its place.
        """
        if self._unmade:
            self._unmade.discard(ident)
        call = self.calls.get(ident)
        if call is None:
            return None
        if call.name != name:
            raise Diverged(
                f"call {ident}: the journal holds {call.name!r}, the code now calls {name!r}"
            )
        if check and call.check and check != call.check:
            shown = f"(hash {check:08x}, recorded {call.check:08x})"
            if args and call.args:
                shown = f"{_text(call.args)}, they now are {_text(args)}"
            raise Diverged(f"call {ident} {name!r}: its arguments are not those recorded: {shown}")
        call.claimed = True
        return call

    def is_turn(self, delivery: Delivery) -> bool:
        """Say whether everything recorded before this completion has happened again."""
        return (
            delivery.index == self._next < self._limit
            and self._body >= delivery.bodies_before
            and self._emit >= delivery.emits_before
        )

    def deliver(self, delivery: Delivery) -> None:
        """Note that the handler has got this completion."""
        delivery.done = True
        deliveries = self._deliveries
        while self._next < len(deliveries) and deliveries[self._next].done:
            self._next += 1

    def cancel(self) -> None:
        """Note that the run is cancelled: its handler is told behind all that was read so far."""
        self._limit = len(self._deliveries)
        self.cancel_at = (self._limit, frozenset(self.calls))

    def pass_cancellation(self) -> None:
        """Note that the handler has been told."""
        self._limit = sys.maxsize

    @property
    def telling(self) -> bool:
        """Whether the run is cancelled, and its handler has yet to be told."""
        return self._limit != sys.maxsize

    def keeps_distance(self, delivery: Delivery) -> bool:
        """Say whether a completion came while tasks were at work side by side."""
        return self.shared_at is not None and delivery.index >= self.shared_at

    @property
    def at_cancel(self) -> bool:
        """Whether all that came before the run was cancelled has happened again."""
        if self.cancel_at is None or self._unmade:
            return False
        delivered, calls = self.cancel_at
        return self._next >= delivered and all(self.calls[ident].claimed for ident in calls)

    @property
    def upcoming(self) -> Delivery | None:
        """The completion to deliver next."""
        return self._deliveries[self._next] if self._next < len(self._deliveries) else None

    # --- events

    def match_head(self, status: int, content_type: str) -> bool:
        """Say whether the response head is recorded.

        Raises: Diverged if another one is.
        """
        if self.head is None:
            return False
        recorded = orjson.loads(self.head)
        old = (recorded["status"], _header(recorded["headers"], "content-type"))
        if old != (status, content_type):
            raise Diverged(
                f"the response began with {old}, the code now answers {status, content_type}"
            )
        self._head_matched = True
        return True

    def match_body(self, data: bytes) -> bytes:
        """Return what of `data` goes beyond the recorded body.

        Raises: Diverged at the first byte that differs.
        """
        while data and self._body < len(self._bodies):
            recorded = self._bodies[self._body]
            rest = recorded[self._body_at :]
            size = min(len(rest), len(data))
            if rest[:size] != data[:size]:
                raise Diverged(
                    f"body event {self._body + 1}: recorded {_shown(recorded)}, "
                    f"the code now sends {_shown(data)}"
                )
            data = data[size:]
            self._body_at += size
            if self._body_at == len(recorded):
                self._body, self._body_at = self._body + 1, 0
        return data

    def match_emit(self, ident: str, data: bytes) -> bool:
        """Say whether this emitted event is recorded. Tasks emit in any order among themselves.

        Raises: Diverged if another one is.
        """
        place, recorded = self._emits.get(ident, (-1, b""))
        if place < 0:
            return False
        if recorded != data:
            raise Diverged(f"emit: recorded {_shown(recorded)}, the code emits {_shown(data)}")
        self._emitted.add(place)
        while self._emit in self._emitted:  # how many from the first on have come again
            self._emit += 1
        return True

    def skip_body(self) -> None:
        """Take the recorded body as it is: its bytes cannot be made twice (compressed)."""
        self._body, self._body_at = len(self._bodies), 0

    # --- the end

    def shows_more_than(self, is_ahead: Callable[[str], bool]) -> bool:
        """Say whether it shows that the run was past where a task of its code is now.

        While tasks are at work side by side, a completion that is yet to be delivered shows
        nothing if its call has been made already: it may have come before the code came here.
        Neither does another task's call that was made before the last completion delivered.
        `is_ahead` says of a call's identity whether it lies ahead of that one task.
        """
        if self.exhausted:  # and the handler is yet to be told that the run is cancelled
            return False
        if self.telling and self.at_cancel and self._showed:  # the rest came of its being told
            return False
        if self.shared_at is None or self._next < self.shared_at:
            return True
        if (
            self._body < len(self._bodies)
            or len(self._emitted) < len(self._emits)
            or (self.head is not None and not self._head_matched)
        ):
            return True
        seen = self._deliveries[self._next - 1].entry.seq if self._next else 0
        return any(
            call.goes_on(here=is_ahead(call.ident))
            if call.claimed
            else call.seq > seen or is_ahead(call.ident)
            for call in self.calls.values()
        )

    @property
    def delivered(self) -> bool:
        """Whether every recorded completion has been delivered."""
        return self._next == len(self._deliveries)

    @property
    def exhausted(self) -> bool:
        """Whether nothing recorded is left to happen again."""
        return self.delivered and self._showed and all(call.claimed for call in self.calls.values())

    @property
    def _showed(self) -> bool:
        """Whether all that readers have seen was shown again."""
        return (
            self._body == len(self._bodies)
            and self._emit == len(self._emits)
            and (self._head_matched or self.head is None)
        )

    def exhausted_but(self, prefix: str | None) -> bool:
        """Say whether nothing is left but calls whose identity begins with `prefix`."""
        if prefix is None or self.exhausted:
            return self.exhausted
        rest = [call for call in self.calls.values() if not call.ident.startswith(prefix)]
        return (
            all(call.claimed for call in rest)
            and all(d.done for call in rest for d in call.deliveries)
            and self._body == len(self._bodies)
            and self._emit == len(self._emits)
        )

    def difference(self) -> str:
        """Say what is recorded and did not happen again."""
        left = [f"{call.name!r} ({call.ident})" for call in self.calls.values() if not call.claimed]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            shown = ", ".join(left[:3]) + more
            return f"the journal holds steps that the code no longer calls: {shown}"
        if self._body < len(self._bodies):
            wanted = _shown(self._bodies[self._body][self._body_at :])
            return f"the recorded body goes on with {wanted}, the code sent nothing more"
        if self._emit < len(self._emits):
            missing = next(data for place, data in self._emits.values() if place == self._emit)
            return f"the recorded event {_shown(missing)} was not emitted again"
        waiting = self.upcoming
        if waiting is not None:
            return f"the recorded result of {waiting.entry.key!r} was not awaited"
        return "the response was begun, the code now answers nothing"


def _header(headers: Sequence[Sequence[str]], name: str) -> str:
    return next((value for key, value in headers if key == name), "")


def _shown(data: bytes) -> str:
    cut = data[:_SHOWN]
    return repr(cut) + ("…" if len(data) > len(cut) else "")


def _text(data: bytes) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
