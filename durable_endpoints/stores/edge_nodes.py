"""An edge node among the others: implements `Nodes` and `Edge`, and hears what the centre says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from durable_endpoints import limits
from durable_endpoints.stores.edge_file import EdgeFile
from durable_endpoints.stores.edge_ship import Shipper
from durable_endpoints.stores.nodes import Lag, Listener, Message, Standing, Tally

if TYPE_CHECKING:
    from durable_endpoints.stores.edge_centre import Centre

_LOOK_S: Final = 0.1


class EdgeNodes:
    """Runs in the local file are this node's own; all others are asked for at the centre."""

    def __init__(self, local: EdgeFile, centre: Centre, ship: Shipper, unshipped_max: int) -> None:
        self.node = centre.node
        self.listener: Listener | None = None
        self._local = local
        self._centre = centre
        self._ship = ship
        self._unshipped_max = unshipped_max

    # --- how it is

    @property
    def holds_lease(self) -> bool:
        """Always: what the lease at the centre is needed for waits in `settled`."""
        return True

    @property
    def away(self) -> str | None:
        """Why no new run is taken: too much is on this disk only."""
        lag = self._ship.lag(None)
        if lag.bytes < self._unshipped_max:
            return None
        return (
            f"{lag.bytes:,} bytes are on this node's disk only, and the centre does not take "
            f"them: {self.trouble or 'it is too slow'}"
        )

    @property
    def poll_s(self) -> float:
        """See `Nodes.poll_s`."""
        nodes = self._centre.nodes
        return nodes.poll_s if nodes is not None else limits.NODES_POLL_S

    @property
    def trouble(self) -> str | None:
        """See `Edge.trouble`."""
        return self._ship.trouble

    @property
    def tally(self) -> Tally:
        """See `Edge.tally`."""
        return self._ship.claims.tally

    def lag(self, run_id: str | None = None) -> Lag:
        """See `Edge.lag`."""
        return self._ship.lag(run_id)

    async def settled(self, run_id: str) -> None:
        """See `Edge.settled`."""
        while self._ship.in_doubt(run_id):  # noqa: ASYNC110 - as seldom as an outage
            await asyncio.sleep(_LOOK_S)

    # --- what the centre tells: see `Listener`

    def moved(self, run_ids: Sequence[str]) -> None:
        """Pass it on."""
        if self.listener is not None:
            self.listener.moved(run_ids)

    def mailed(self) -> None:
        """Pass it on."""
        if self.listener is not None:
            self.listener.mailed()

    def answered(self) -> None:
        """Pass it on."""
        if self.listener is not None:
            self.listener.answered()

    def orphaned(self) -> None:
        """Ignore it: this node takes no runs of others."""

    def fenced(self, reason: str, run_ids: Sequence[str] | None = None) -> None:
        """Note that the lease is over, or pass on which runs went on elsewhere."""
        if run_ids is None:
            self._ship.lost(reason)
        elif self.listener is not None:
            self.listener.fenced(reason, run_ids)

    # --- runs of other nodes

    async def follow(self, run_ids: Sequence[str]) -> Sequence[Standing]:
        """See `Nodes.follow`."""
        here, elsewhere = [], []
        for run_id in run_ids:
            row = await self._local.get(run_id)
            if row is None:
                elsewhere.append(run_id)
            else:
                here.append(Standing(run_id, row.epoch, row.last_seq, row.status))
        if not elsewhere:
            return here
        return [*here, *await self._centre.at_hand.follow(elsewhere)]

    async def unshipped(self, run_id: str) -> bytes | None:
        """See `Nodes.unshipped`."""
        if await self._local.get(run_id) is not None:
            return self._ship.lag_json(run_id)
        nodes = self._centre.nodes
        return await nodes.unshipped(run_id) if nodes is not None else None

    async def deposit(self, message: Message, *, answer: bool) -> bool:
        """See `Nodes.deposit`. A run that rests at the centre is taken up there for a question."""
        if await self._local.get(message.run_id) is not None:
            return False
        if await self._centre.at_hand.deposit(message, answer=answer):
            return True
        return answer and await self._centre.leave_word(message)

    async def mail(self) -> Sequence[Message]:
        """See `Nodes.mail`."""
        nodes = self._centre.nodes
        return await nodes.mail() if nodes is not None else []

    async def answer(self, message: Message, answer: bytes) -> None:
        """See `Nodes.answer`."""
        await self._centre.at_hand.answer(message, answer)

    async def answer_to(self, message: Message) -> bytes | None:
        """See `Nodes.answer_to`."""
        if self._centre.nodes is None or await self._local.get(message.run_id) is not None:
            return None
        return await self._centre.at_hand.answer_to(message)

    async def withdraw(self, message: Message) -> None:
        """See `Nodes.withdraw`."""
        if self._centre.nodes is not None and await self._local.get(message.run_id) is None:
            await self._centre.at_hand.withdraw(message)
