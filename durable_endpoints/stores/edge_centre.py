"""The centre, as an edge node sees it: a PostgreSQL store, and what only an edge asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from durable_endpoints.errors import StoreAway
from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores.nodes import Message
from durable_endpoints.stores.postgres import PostgresStore
from durable_endpoints.stores.postgres_nodes import PostgresNodes
from durable_endpoints.stores.postgres_rows import packed

_PLACES: Final = (
    "select run_id, epoch, last_seq, status, owner,"
    " array(select ident from waits where waits.run_id = runs.run_id),"
    " case when epoch = 1 then last_seq else coalesce((select max(first_seq + entries) - 1"
    " from frames where frames.run_id = runs.run_id and frames.epoch = 1), -1) end"
    " from runs where run_id = any($1::text[])"
)
_DELETED: Final = "select run_id from deleted where run_id = any($1::text[])"
_ROUSE: Final = (
    "with resting as materialized (select run_id from runs where run_id = any($1::text[])"
    " and status = 'suspended' order by run_id for no key update)"
    " update runs set wake_at_ms = 0 from resting where runs.run_id = resting.run_id"
)
# Runs that wait behind one that has ended look whether they are the first now.
_TURNS: Final = (
    "select run_id from runs where concurrency_key = $1 and name = $2 and status = 'suspended'"
    " and principal is not distinct from $3 and waiting like '%\"turn\"%'"
)
_TELL: Final = "update nodes set unshipped = $2 where node = $1"
# A message for a run that rests at the centre, or is about to be taken up there.
_LEAVE_WORD: Final = """
with there as materialized (
  select run_id from runs
  where run_id = $1::text and status in ('running', 'suspended') and owner <> $6::text
), put as (
  insert into inbox (run_id, ident, kind, data, sender)
  select run_id, $2::text, $3::text, $4::bytea, $5::text from there
  on conflict do nothing
)
select run_id from there
"""


class Place(NamedTuple):
    """Where a run stands at the centre."""

    run_id: str
    epoch: int
    last_seq: int
    status: str
    owner: str
    waits: Sequence[str]
    shipped_seq: int  # of the last entry that came from its edge node


class Centre(PostgresStore):
    """A `PostgresStore` in which this node drives no run but those that it ships.

    Such a run has epoch 1 and this node as its owner there; anything else means that it is no
    longer this node's.
    """

    @property
    def at_hand(self) -> PostgresNodes:
        """The node among the others.

        Raises: StoreAway if the centre has not answered since the start.
        """
        if self.nodes is None:
            raise StoreAway("the centre has not answered yet")
        return self.nodes

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`. Whether it is away is what this one batch finds."""
        self._away_since_s = None
        return await super().append(batch)

    async def places(self, run_ids: Sequence[str]) -> dict[str, Place]:
        """Return where runs stand, of those that are there."""
        rows = await self._ask(lambda c: c.fetch(_PLACES, list(run_ids)))
        return {row[0]: Place(*row) for row in rows}

    async def deleted(self, run_ids: Sequence[str]) -> set[str]:
        """Return those of some runs that were deleted."""
        return {row[0] for row in await self._ask(lambda c: c.fetch(_DELETED, list(run_ids)))}

    async def rouse(self, run_ids: Sequence[str]) -> None:
        """Have the other nodes take up runs that rest at the centre."""
        await self._ask(lambda c: c.execute(_ROUSE, list(run_ids)))

    async def pass_on(self, ended: RunRecord) -> None:
        """Rouse the runs that waited for the end of one with a concurrency key."""
        key, name, principal = ended.concurrency_key, ended.name, ended.principal
        values = (packed(key), packed(name), packed(principal))
        rows = await self._ask(lambda c: c.fetch(_TURNS, *values))
        if rows:
            await self.rouse([row[0] for row in rows])

    async def leave_word(self, message: Message) -> bool:
        """Leave a message for an unfinished run of others, and rouse it; False if it is none."""
        values = (
            message.run_id, packed(message.ident), message.kind, message.data, self.node, self.node,
        )  # fmt: skip
        there = await self._ask(lambda c: c.fetchval(_LEAVE_WORD, *values))
        if there is not None:
            await self.rouse([message.run_id])
        return there is not None

    async def erase(self, run_id: str) -> bool:
        """See `Store.delete`.

        Raises: StoreAway, also if the centre has not answered since the start.
        """
        if self.nodes is None:
            raise StoreAway("the centre has not answered yet")
        return await self.delete(run_id)

    async def tell(self, unshipped: bytes) -> None:
        """Say what this node's disk alone has."""
        text = unshipped.decode()
        await self._ask(lambda c: c.execute(_TELL, self.node, text))

    async def vanish(self) -> None:
        """Close without handing anything over: what is not shipped yet may still be, in time."""
        await self._abandon()
