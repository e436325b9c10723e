"""What the engine asks of a store. Nothing more is known of it above this line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol

from durable_endpoints.limits import STORE_PATIENCE_S
from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.stores.nodes import Nodes

# How long whoever asks waits while the store is away, in seconds; None: until it is back, as runs
# do. A client is told after a moment, and comes back.
PATIENCE_S: Final[ContextVar[float | None]] = ContextVar(
    "durable_endpoints.patience", default=STORE_PATIENCE_S
)


@dataclass(frozen=True, slots=True)
class Query:
    """Which runs to list, newest first. `before` is the last run id of the page before.

    With a `concurrency_key`: the unfinished runs of that very principal, name and key, in the
    order in which they were opened, the first one first.
    """

    statuses: tuple[Status, ...] = ()
    name: str | None = None
    principal: str | None = None
    before: str | None = None
    limit: int = 50
    due_ms: int | None = None  # runs that are to be woken by then
    parent: str | None = None
    concurrency_key: str | None = None
    labels: tuple[str, ...] = ()  # each `name:value`; runs that have all of them
    unowned: bool = False  # only runs that may be claimed: no other node drives them


@dataclass(frozen=True, slots=True)
class WaitQuery:
    """Which open waits to list, oldest first.

    With a `payload`, only those whose `match` is among its fields.
    """

    name: str | None = None
    kinds: tuple[str, ...] = ()
    run_id: str | None = None
    payload: Mapping[str, Any] | None = None
    principal: str | None = None
    any_principal: bool = True
    limit: int = 50


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as read back."""

    first_seq: int
    entries: int
    first_offset: int
    events: int
    hash_in: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """How many runs of one name and status were begun in the same minute since the epoch."""

    minute: int
    name: str
    status: Status
    runs: int
    unfinished: tuple[str, ...] = ()  # their ids, if the status is no end


class Store(Protocol):
    """Journals and run rows. One event loop uses it; no two `append` run at a time.

    Every method may raise StoreFailed. After `append` has, the outcome is unknown (I9) and every
    further write must raise it too.
    """

    failed: str | None  # why nothing can be written any more

    @property
    def nodes(self) -> Nodes | None:
        """The other nodes, on a store that has some, once it is open."""
        ...

    async def open(self) -> None:
        """Check the settings, take the ownership, make what a crash left durable (I10).

        Raises: StoreRefused, whose message says what to do.
        """
        ...

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """Write all frames in one durable transaction; at most one frame a run.

        A frame is written only if its run has its `epoch` and ends just before its `first_seq`,
        checked in the statement that inserts (I6). The ids of the others are returned: they are
        fenced, the rest of the batch stands. Does not return before the disk has it. A frame's
        waits are opened and answered with it (`"*"`: all of the run's), and the suspended run
        that it `wakes` becomes due. The openings of one concurrency key have an order, whichever
        nodes they come from; an `exclusive` one is fenced while there is an unfinished one.
        """
        ...

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        """Return frames in order, from the one that holds `seq`, or event `offset` if given.

        Stops once `limit_bytes` are reached; at least one frame if there is one. Sees only what
        is durable.

        Raises: Corrupt if the store cannot make sense of what it holds of this run (I20).
        """
        ...

    async def get(self, run_id: str) -> RunRecord | None:
        """Return the run's row."""
        ...

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """Return the run that a principal started on a route with an idempotency key (I7)."""
        ...

    async def list(self, query: Query) -> list[RunRecord]:
        """Return rows, newest first, but for those of a concurrency key."""
        ...

    async def count(self) -> Mapping[Status, int]:
        """Return how many runs there are of each status that is no end, and dead ones.

        Quick: of one status at most RUNS_COUNTED_MAX are counted.
        """
        ...

    async def begun(self, since: str, before: str | None, limit: int) -> Sequence[Begun]:
        """Count the runs from the id `since` on and below `before`; of many, the newest `limit`.

        As of one moment; dead and diverged runs are among the unfinished ones.
        """
        ...

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        """Return open waits, those of the oldest run first."""
        ...

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        """Raise the runs' epochs and count an attempt, durably, before their code runs (I17).

        The count starts anew if entries came since the last claim. A suspended run becomes
        running; that is no attempt: it had stopped in good order. Returns the rows of those that
        are unfinished, in one transaction; dead runs count as unfinished if `dead` is set.
        """
        ...

    async def release(self, run_ids: Sequence[str]) -> None:
        """Take back the attempts of runs that stop in good order (I22)."""
        ...

    async def delete(self, run_id: str) -> bool:
        """Remove a run and its journal for good (I21); its id stays known as deleted."""
        ...

    async def was_deleted(self, run_id: str, principal: str | None) -> bool:
        """Say whether `delete` has removed this run of this principal's."""
        ...

    async def close(self) -> None:
        """Write what is left to do, mark the stop as clean, let go."""
        ...
