"""The store of a node near the users: it commits on its own disk, and ships to a centre behind.

What a client has seen is on this node's disk; the centre, which many nodes share, has it a moment
later. What it does not have yet is lost with the disk: `Edge.lag` says how much that is. While the
centre does not answer, local work goes on.

A run is this node's as long as it is in the local file and its owner at the centre is this node.
It goes to the centre when it waits for long, and when the node drains. If the node's lease at the
centre ends, other nodes may take the run up from what was shipped; what was not is void then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from durable_endpoints import limits
from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.errors import Overloaded, StoreAway, StoreError, StoreRefused
from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.states import REVIVABLE, TERMINAL
from durable_endpoints.stores.edge_file import EdgeFile
from durable_endpoints.stores.edge_nodes import EdgeNodes
from durable_endpoints.stores.edge_ship import Shipper
from durable_endpoints.stores.nodes import Nodes
from durable_endpoints.stores.protocol import PATIENCE_S, Begun, Query, StoredFrame, WaitQuery

if TYPE_CHECKING:
    from durable_endpoints.stores.edge_centre import Centre

T = TypeVar("T")
Rows: TypeAlias = list[RunRecord]  # inside the class, `list` is a method


class EdgeStore:
    """Implements `Store` on a local SQLite file, shipped to a PostgreSQL.

    `local` and `central` are store addresses. `hand_over_after`: seconds that a run may wait (for
    a time, a signal, a person) before it is handed to the centre; `math.inf`: only when the node
    drains. `unshipped_max`: bytes that may be on this disk only; beyond, new runs get 503.

    Raises: ValueError for other addresses; StoreRefused without the extra `postgres`.
    """

    def __init__(
        self,
        local: str,
        central: str,
        *,
        hand_over_after: float = limits.EDGE_HAND_OVER_S,
        unshipped_max: int = limits.EDGE_UNSHIPPED_BYTES_MAX,
        clock: Clock | None = None,
    ) -> None:
        if not local.startswith("sqlite:///") or local == "sqlite:///":
            raise ValueError(f"local={local!r}: use sqlite:///path.db")
        if not central.startswith(("postgresql://", "postgres://")):
            raise ValueError(f"central={central!r}: use postgresql://user@host/database")
        if hand_over_after < 0 or unshipped_max <= 0:
            raise ValueError("hand_over_after and unshipped_max cannot be negative")
        clock = clock or SystemClock()
        self.local = EdgeFile(local.removeprefix("sqlite:///"))
        self.centre = _centre(central, clock)
        self._clock = clock
        self._shipper = Shipper(self.local, self.centre, clock, hand_over_after)
        self.nodes: Nodes | None = None
        self._unshipped_max = unshipped_max
        self._ask_after_s = 0.0

    @property
    def failed(self) -> str | None:
        """See `Store.failed`: of the local file."""
        return self.local.failed

    @failed.setter
    def failed(self, reason: str | None) -> None:
        self.local.failed = reason

    @property
    def path(self) -> Path:
        """Where the local file is."""
        return self.local.path

    async def open(self) -> None:
        """See `Store.open`. The centre is given a moment to say which runs are still this node's.

        Raises: StoreRefused for the local file; the centre may be away.
        """
        await self.local.open()
        try:
            self.centre.identity = self.centre.node = await self.local.identity()
            nodes = EdgeNodes(self.local, self.centre, self._shipper, self._unshipped_max)
            self.nodes = self._shipper.claims.listener = nodes
            await self._shipper.start()
        except BaseException:
            await self.local.close()
            raise
        try:
            await asyncio.wait_for(self._shipper.ready.wait(), limits.EDGE_OPEN_S)
        except TimeoutError:
            return  # runs that the centre knows are taken up when it answers

    async def close(self) -> None:
        """See `Store.close`. What is unfinished is handed to the centre, if it answers."""
        ship = self._shipper
        unfinished = [i for i, track in ship.tracks.items() if track.status not in TERMINAL]
        if self.failed is None and ship.trouble is None:
            await ship.hand_over(unfinished, limits.EDGE_LEAVE_S)
            await ship.shipped(limits.EDGE_LEAVE_S)
        await ship.stop()
        if any(track.known for track in ship.tracks.values()):
            await self.centre.vanish()  # whoever leaves in order hands over what it has shipped
        else:
            await self.centre.close()
        ship.tracks.clear()
        self.nodes = None
        await self.local.close()

    # --- the journal

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`. The centre is not waited for."""
        fenced = await self.local.append(batch)
        self._shipper.appended(batch, fenced)
        return fenced

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        """See `Store.read`."""
        found = await self.local.read(run_id, seq=seq, offset=offset, limit_bytes=limit_bytes)
        if found or await self.local.get(run_id) is not None:
            return found
        await self._reach_centre()
        return await self.centre.read(run_id, seq=seq, offset=offset, limit_bytes=limit_bytes)

    # --- runs

    async def get(self, run_id: str) -> RunRecord | None:
        """See `Store.get`. Runs that are not here are looked for at the centre.

        Raises: StoreAway.
        """
        found = await self.local.get(run_id)
        if found is not None:
            return found
        await self._reach_centre()
        return await self.centre.get(run_id)

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """See `Store.find`: one key is one run here; and everywhere, if the centre answers."""
        found = await self.local.find(principal, name, key)
        if found is not None:
            return found
        found = await self._maybe(lambda: self.centre.find(principal, name, key), None)
        return await self.local.get(found.run_id) or found if found is not None else None

    async def list(self, query: Query) -> Rows:
        """See `Store.list`: what is here, and what the centre has besides, if it answers."""
        here = await self.local.list(query)
        if query.unowned or query.due_ms is not None:
            return [run for run in here if self._shipper.may_claim(run.run_id)]
        nothing: Rows = []
        there = await self._maybe(lambda: self.centre.list(query), nothing)
        known = await self.local.known([run.run_id for run in there])
        besides = [run for run in there if run.run_id not in known]
        if query.concurrency_key is not None:  # in the order of their turns
            return [*besides, *here][: query.limit]
        rows = sorted([*here, *besides], key=lambda run: run.run_id, reverse=True)
        return rows[: query.limit]

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        """See `Store.waits`: those here, and those at the centre besides, if it answers."""
        here = await self.local.waits(query)
        nothing: Sequence[WaitRecord] = ()
        there = await self._maybe(lambda: self.centre.waits(query), nothing)
        known = await self.local.known([wait.run_id for wait in there])
        besides = [wait for wait in there if wait.run_id not in known]
        found = sorted([*here, *besides], key=lambda wait: (wait.run_id, wait.ident))
        return found[: query.limit]

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        """See `Store.claim`. Runs that rest at the centre are taken up there, not here.

        Raises: Overloaded for a dead or diverged run that is at the centre.
        """
        free = [run_id for run_id in run_ids if self._shipper.may_claim(run_id)]
        claimed = await self.local.claim(free, now_ms, dead=dead)
        self._shipper.claimed(run.run_id for run in claimed)
        known = await self.local.known(free) if len(claimed) < len(free) else set(free)
        others = [run_id for run_id in free if run_id not in known]
        if others:
            await self._maybe(lambda: self._ask_to_take(others, dead=dead), None)
        return claimed

    async def _ask_to_take(self, run_ids: Sequence[str], *, dead: bool) -> None:
        await self.centre.rouse(run_ids)
        for run_id in run_ids if dead else ():
            run = await self.centre.get(run_id)
            if run is not None and run.status in REVIVABLE:
                raise Overloaded(
                    f"the run is {run.status}, and at the centre: ask a central node to do this"
                )

    async def release(self, run_ids: Sequence[str]) -> None:
        """See `Store.release`: the runs go to the centre, and on there, if it answers."""
        await self.local.release(run_ids)
        await self._shipper.hand_over(run_ids, limits.EDGE_LEAVE_S)

    async def delete(self, run_id: str) -> bool:
        """See `Store.delete`: here and at the centre.

        Raises: StoreAway: then nothing was deleted.
        """
        if await self.local.get(run_id) is None:
            await self._reach_centre()
            return await self.centre.delete(run_id)
        await self._shipper.delete(run_id)
        return True

    async def was_deleted(self, run_id: str, principal: str | None) -> bool:
        """See `Store.was_deleted`."""
        if await self.local.was_deleted(run_id, principal):
            return True
        await self._reach_centre()
        return await self.centre.was_deleted(run_id, principal)

    async def count(self) -> Mapping[Status, int]:
        """See `Store.count`: of the runs that are here."""
        return await self.local.count()

    async def begun(self, since: str, before: str | None, limit: int) -> Sequence[Begun]:
        """See `Store.begun`: of the runs that are here."""
        return await self.local.begun(since, before, limit)

    async def settings(self) -> dict[str, Any]:
        """Return what the local file says of itself, and where the centre is."""
        return {**await self.local.settings(), "centre": self.centre.address.shown}

    # --- the centre

    async def _reach_centre(self) -> None:
        """Wait for a centre that has answered since the start, as a run may.

        Raises: StoreAway to a client.
        """
        while (trouble := self._shipper.trouble) is not None:
            if PATIENCE_S.get() is not None:
                raise StoreAway(f"the run is not here, and the centre does not answer: {trouble}")
            await asyncio.sleep(limits.EDGE_ASK_S)

    async def _maybe(self, ask: Callable[[], Awaitable[T]], otherwise: T) -> T:
        """Ask the centre what can be done without; it is not asked again soon if it is away."""
        now_s = self._clock.monotonic_s()
        if self.centre.nodes is None or now_s < self._ask_after_s:
            return otherwise
        try:
            async with asyncio.timeout(limits.EDGE_ASK_S):
                return await ask()
        except (StoreError, TimeoutError):
            self._ask_after_s = self._clock.monotonic_s() + limits.EDGE_ASK_AGAIN_S
            return otherwise


def _centre(address: str, clock: Clock) -> Centre:
    try:
        from durable_endpoints.stores.edge_centre import Centre
    except ModuleNotFoundError as error:
        raise StoreRefused(
            "an edge store needs asyncpg: pip install 'durable-endpoints[postgres]'"
        ) from error
    return Centre(address, clock=clock)
