"""One wait, one signal, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import orjson

from durable_endpoints.codec import dumps
from durable_endpoints.engine.pace import Ticket
from durable_endpoints.errors import PayloadTooLarge
from durable_endpoints.limits import SIGNAL_BYTES_MAX
from durable_endpoints.records import Kind

LISTED: Final = frozenset({"signal", "approval", "decision"})  # kinds that others look for
_SHOWN_MAX: Final = 20


@dataclass(slots=True, eq=False)
class Wait:
    """One open wait. `kind`: timer, retry, quota, child, signal, approval or decision."""

    ident: str
    key: bytes
    kind: str
    name: str = ""
    until_ms: int | None = None
    once: bool = False
    check: Callable[[bytes], object] | None = None  # of a signal's data; raises
    fires: bool = True  # its time is an entry of its own
    match: str | None = None
    early: bool = False  # opened before the handler waits for it: it keeps no turn
    future: asyncio.Future[tuple[Kind, bytes]] = field(init=False)
    ticket: Ticket | None = None

    def fits(self, payload: bytes) -> bool:
        """Say whether a signal with these data answers it."""
        kinds = orjson.loads(payload).get("kinds")
        if kinds is not None and self.kind not in kinds:
            return False
        if self.check is None:
            return True
        try:
            self.check(payload)
        except Exception:  # noqa: BLE001 - not for this wait: it is kept for another
            return False
        return True

    @property
    def shown(self) -> dict[str, str | None]:
        """What people see of it."""
        until = None
        if self.until_ms is not None:
            at = datetime.fromtimestamp(self.until_ms / 1000, UTC)
            until = at.isoformat(timespec="seconds")
        return {"kind": self.kind, "name": self.name, "until": until}


def shown(waits: Iterable[Wait]) -> str:
    """Return what people see of a run's waits, as JSON; of many, the first."""
    return orjson.dumps([wait.shown for wait in islice(waits, _SHOWN_MAX)]).decode()


@dataclass(frozen=True, slots=True)
class Signal:
    """A message from outside. `data` is JSON; `by` is who sent it, if that is known.

    It answers only waits of these `kinds`; with an `ident`, that very wait.
    """

    signal_id: str
    name: str
    data: bytes
    by: str | None = None
    kinds: frozenset[str] = LISTED
    ident: str | None = None

    def suits(self, wait: Wait) -> bool:
        """Say whether it can answer a wait, whatever its data."""
        named = wait.name == self.name if self.ident is None else wait.ident == self.ident
        return named and wait.kind in self.kinds


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a signal: `taken` by a wait, `kept` for one, or `known` already."""

    outcome: str
    seq: int


def encode_data(name: str, data: Any) -> bytes:
    """Return a signal's data as JSON.

    Raises: NotSerializable, PayloadTooLarge.
    """
    encoded = dumps(data, f"signal {name}")
    if len(encoded) > SIGNAL_BYTES_MAX:
        raise PayloadTooLarge(f"signal {name}", len(encoded), SIGNAL_BYTES_MAX)
    return encoded
