"""The store for many nodes: PostgreSQL.

What it assumes: a server that keeps what it has committed. What it relies on: `fsync`,
`full_page_writes` and `synchronous_commit`, read back on every new connection; epoch and last seq
checked in the statement that inserts; leases by the database's clock.

A lost connection is no failed write: what became of the batch is found out on a new one, and
until then nothing of it is published. Only an error that never will go away ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from durable_endpoints import limits
from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.errors import StoreAway, StoreFailed, StoreRefused
from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.stores.postgres_append import unwritten, write
from durable_endpoints.stores.postgres_lease import Lease
from durable_endpoints.stores.postgres_link import Address, Connection, Link, Trouble, connect, sql
from durable_endpoints.stores.postgres_nodes import PostgresNodes
from durable_endpoints.stores.postgres_query import list_sql, waits_sql
from durable_endpoints.stores.postgres_rows import ROW, begun_of, packed, run_of, unpacked, wait_of
from durable_endpoints.stores.postgres_schema import SCHEMA, migrate
from durable_endpoints.stores.protocol import PATIENCE_S, Begun, Query, StoredFrame, WaitQuery
from durable_endpoints.stores.waits import match_of

logger = logging.getLogger("durable_endpoints")

T = TypeVar("T")
Rows: TypeAlias = list[RunRecord]  # inside the class, `list` is a method

_GET: Final = f"select {ROW} from runs where run_id = $1"  # noqa: S608 - names of columns
_FIND: Final = (
    f"select {ROW} from runs where coalesce(principal, '') = $1 and name = $2"  # noqa: S608
    " and idempotency_key = $3"
)
_DELETED: Final = "select from deleted where run_id = $1 and principal is not distinct from $2"
# The next set of fields that waits of a name match by: one index look-up a set.
_NEXT_FIELDS: Final = "select min(fields) from waits where name = $1 and fields > $2"
_ABOUT: Final = (
    "select current_setting('server_version') postgres, (select count(*) from nodes"
    " where lease_until > now()) nodes, (select count(*) from runs) runs,"
    " pg_database_size(current_database()) bytes"
)


class PostgresStore:
    """Implements `Store` on a schema of a database; each open store is a node of its own."""

    def __init__(self, address: str, *, clock: Clock | None = None) -> None:
        self.address = Address.parse(address)
        self.failed: str | None = None
        self.node = ""
        self.identity: str | None = (
            None  # the node's name, if it is to be the same at every opening
        )
        self._clock = clock or SystemClock()
        self._host = f"{socket.gethostname()}:{os.getpid()}"
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: asyncpg.Pool[Any] | None = None
        self._writer: Link | None = None
        self._lease: Lease | None = None
        self.nodes: PostgresNodes | None = None
        self._away_since_s: float | None = None
        self._away_reason = ""

    # --- opening, closing, and how it is

    async def open(self) -> None:
        """See `Store.open`. A store that is open already begins anew, as another node."""
        if self._pool is not None:
            await self.close()
        self._pid, self._loop = os.getpid(), asyncio.get_running_loop()
        self._host = f"{socket.gethostname()}:{self._pid}"
        self.node = self.identity or secrets.token_hex(8)
        self.failed, self._away_since_s = None, None
        try:
            await self._open(self._clock.monotonic_s() + limits.POSTGRES_OPEN_S)
        except BaseException:
            await self._abandon()
            raise

    async def _open(self, until_s: float) -> None:
        address = self.address
        first = await self._first_connection(until_s)
        try:
            await migrate(first, address)
        finally:
            await first.close()
        self._writer = Link(address, f"durable {self.node} writer")
        await self._writer.connection()
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=limits.POSTGRES_READERS_MAX,
            connect=self._connect_reader, reset=_no_reset,
        )  # fmt: skip
        self._lease = Lease(address, self.node, self._host, self._clock)
        await self._lease.start()
        if not self._lease.held:
            raise StoreRefused(f"{address.shown} gives no lease: {self._lease.trouble}")
        self.nodes = PostgresNodes(address, self.node, self._lease, self._ask, self._clock)
        self.nodes.start(lambda: self.away)

    async def _first_connection(self, until_s: float) -> Connection:
        while True:
            try:
                return await connect(self.address, f"durable {self.node}")
            except StoreRefused:
                raise
            except Exception as error:
                away = Trouble.of(error) in (Trouble.AWAY, Trouble.BUSY)
                if not away or self._clock.monotonic_s() > until_s or _is_refusal(error):
                    raise StoreRefused(
                        f"{self.address.shown} cannot be used: {type(error).__name__}: {error}. "
                        "Check the address, and that the server takes connections."
                    ) from error
            await asyncio.sleep(limits.POSTGRES_RETRY_S[1])

    async def _connect_reader(self, *_: Any, **__: Any) -> Connection:
        return await connect(self.address, f"durable {self.node} reader")

    async def close(self) -> None:
        """See `Store.close`. What this node has is anybody's at once."""
        if self._lease is not None:
            await self._lease.stop()
        if self.nodes is not None and self.failed is None:
            try:
                await self.nodes.leave()
            except StoreAway as error:
                logger.warning("left without a word: %s; others wait for the lease", error)
        await self._abandon()

    async def _abandon(self) -> None:
        if self.nodes is not None:
            await self.nodes.stop()
        if self._lease is not None:
            await self._lease.stop()
        if self._writer is not None:
            await self._writer.close()
        if self._pool is not None:
            self._pool.terminate()
        self._pool, self._writer, self._lease, self.nodes = None, None, None, None

    @property
    def away(self) -> str | None:
        """Why nothing can be written for now; None while all is well."""
        if self._lease is not None and not self._lease.held:
            return f"the lease is over: {self._lease.trouble or 'the process was paused'}"
        since_s = self._away_since_s
        if since_s is None:
            return None
        late = self._clock.monotonic_s() - since_s > limits.WINDOW_AGE_S_MAX
        return f"PostgreSQL does not answer: {self._away_reason}" if late else None

    @property
    def holds_lease(self) -> bool:
        """Whether this node may still begin what a crash cannot undo (I3)."""
        return self._lease is not None and self._lease.held

    # --- the journal

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`.

        While PostgreSQL is away it waits, for as long as the node's lease holds; after that every
        run of the batch is reported as fenced: another node may have it by then.
        """
        if not batch:
            return frozenset()
        left: Sequence[Frame] = batch
        fenced: frozenset[str] = frozenset()
        unanswered = False
        wait_s, longest_s = limits.POSTGRES_RETRY_S
        writer, lease = self._usable()
        while lease.held:
            timer = asyncio.get_running_loop().call_later(limits.POSTGRES_ANSWER_S, writer.drop)
            try:
                if unanswered:
                    left = await unwritten(writer, left)
                    unanswered = False
                if left:
                    fenced |= await write(await writer.connection(), left, self.node)
            except Exception as error:  # noqa: BLE001 - judged, and raised again if it is for ever
                unanswered = self._judge(error, writer) or unanswered
            else:
                self._away_since_s = None
                writer.former.clear()
                if self.nodes is not None:
                    self.nodes.committed(batch, fenced)
                return fenced
            finally:
                timer.cancel()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)
        self._away_since_s = None  # nothing waits any more; the lease says how it is
        logger.warning("the lease of this node is over; %d runs are left to others", len(batch))
        return frozenset(frame.run_id for frame in batch)

    def _judge(self, error: Exception, writer: Link) -> bool:
        """Note why a write did not succeed; say whether its outcome is unknown.

        Raises: StoreFailed if it never will succeed.
        """
        trouble = Trouble.of(error)
        if trouble in (Trouble.BUG, Trouble.DATA):
            writer.drop()
            self.failed = f"a write to {self.address.shown} failed: {type(error).__name__}: {error}"
            raise StoreFailed(self.failed) from error
        if self._away_since_s is None:
            self._away_since_s = self._clock.monotonic_s()
            logger.warning("a write waits for PostgreSQL: %s: %s", type(error).__name__, error)
        self._away_reason = str(error) or type(error).__name__
        if trouble is Trouble.AWAY:
            writer.drop()
        return trouble is Trouble.AWAY

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        """See `Store.read`."""
        place = (run_id, seq, -1 if offset is None else offset)
        most = (limit_bytes, limits.POSTGRES_READ_FRAMES_MAX)
        found = await self._ask(lambda c: c.fetch(sql("postgres/read"), *place, *most))
        return [StoredFrame(*row) for row in found]

    # --- runs

    async def get(self, run_id: str) -> RunRecord | None:
        """See `Store.get`."""
        return await self._first(_GET, run_id)

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """See `Store.find`."""
        return await self._first(_FIND, packed(principal) or "", packed(name), packed(key))

    async def list(self, query: Query) -> Rows:
        """See `Store.list`."""
        statement, values = list_sql(query, self.node)
        return [run_of(row) for row in await self._ask(lambda c: c.fetch(statement, *values))]

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        """See `Store.waits`."""

        async def work(connection: Connection) -> Sequence[WaitRecord]:
            choices = []
            if query.payload is not None:
                choices = await _choices(connection, query)
                if not choices:
                    return []
            statement, values = waits_sql(query, choices)
            return [wait_of(row) for row in await connection.fetch(statement, *values)]

        return await self._ask(work)

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        """See `Store.claim`. Runs that a living node drives are left to it."""
        if not run_ids or not self.holds_lease:
            return []
        values = (list_of(run_ids), self.node, now_ms, dead)
        found = await self._ask(lambda c: c.fetch(sql("postgres/claim"), *values))
        runs = {row[0]: run_of(row) for row in found}
        return [runs[run_id] for run_id in dict.fromkeys(run_ids) if run_id in runs]

    async def release(self, run_ids: Sequence[str]) -> None:
        """See `Store.release`."""
        ids = list_of(run_ids)
        release = sql("postgres/release")
        await self._ask(lambda c: c.execute(release, ids, self.node), limits.STORE_PATIENCE_S)
        if self.nodes is not None:
            self.nodes.handed_over()

    async def delete(self, run_id: str) -> bool:
        """See `Store.delete`."""
        found = await self._ask(lambda c: c.fetch(sql("postgres/delete"), run_id))
        return bool(found)

    async def was_deleted(self, run_id: str, principal: str | None) -> bool:
        """See `Store.was_deleted`."""
        found = await self._ask(lambda c: c.fetch(_DELETED, run_id, packed(principal)))
        return bool(found)

    async def count(self) -> Mapping[Status, int]:
        """See `Store.count`."""
        most = limits.RUNS_COUNTED_MAX
        return dict(await self._ask(lambda c: c.fetch(sql("postgres/count"), most)))

    async def begun(self, since: str, before: str | None, limit: int) -> Sequence[Begun]:
        """See `Store.begun`."""
        rows = await self._ask(lambda c: c.fetch(sql("postgres/begun"), since, before, limit))
        return [begun_of(row) for row in rows]

    async def fleet(self) -> Sequence[Mapping[str, Any]]:
        """Return the nodes: node, host, lease_s (left), since_ms, runs (that it drives)."""
        most = (limits.LIST_ROWS_MAX, limits.RUNS_COUNTED_MAX)
        rows = await self._ask(lambda c: c.fetch(sql("postgres/fleet"), *most))
        return [dict(row) for row in rows]

    async def settings(self) -> dict[str, Any]:
        """Return what the database says of itself, for the doctor."""
        found = await self._ask(lambda c: c.fetchrow(_ABOUT))
        about = {"address": self.address.shown, "node": self.node, "schema": SCHEMA}
        return {**about, **dict(found or {})}

    # --- asking

    async def _first(self, statement: str, *values: Any) -> RunRecord | None:
        row = await self._ask(lambda c: c.fetchrow(statement, *values))
        return run_of(row) if row is not None else None

    async def _ask(
        self, work: Callable[[Connection], Awaitable[T]], patience_s: float | None = None
    ) -> T:
        """Do some work on a connection of the pool; again for a while if PostgreSQL is away.

        For as long as the caller's patience lasts (see `PATIENCE_S`), or `patience_s`.

        Raises: StoreAway if it does not come back in time; StoreFailed.
        """
        self._usable()
        assert self._pool is not None
        patience_s = PATIENCE_S.get() if patience_s is None else patience_s
        began_s = self._clock.monotonic_s()
        wait_s, longest_s = limits.POSTGRES_RETRY_S
        while True:
            try:
                async with asyncio.timeout(limits.POSTGRES_ANSWER_S):
                    async with self._pool.acquire() as connection:
                        return await work(connection)  # type: ignore[arg-type]
            except Exception as error:
                if Trouble.of(error) not in (Trouble.AWAY, Trouble.BUSY):
                    raise StoreFailed(f"cannot ask {self.address.shown}: {error}") from error
                if patience_s is not None and self._clock.monotonic_s() - began_s > patience_s:
                    reason = f"PostgreSQL does not answer: {type(error).__name__}: {error}"
                    raise StoreAway(reason) from error
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    def _usable(self) -> tuple[Link, Lease]:
        if self.failed is not None or self._writer is None or self._lease is None:
            raise StoreFailed(self.failed or "the store is not open")
        if os.getpid() != self._pid:
            raise StoreFailed("the process forked after the store was opened; open it in the child")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreFailed(
                "a PostgreSQL store belongs to the event loop that opened it; with Starlette's "
                "TestClient, write `with TestClient(app) as client:`"
            )
        return self._writer, self._lease


async def _choices(connection: Connection, query: WaitQuery) -> list[tuple[str, str]]:
    """Return (fields, match) of the waits that the payload of an event can answer."""
    found: list[tuple[str, str]] = []
    fields: str | None = ""  # waits that match on no field are found by their run only
    while fields := await connection.fetchval(_NEXT_FIELDS, packed(query.name), fields):
        names = unpacked(fields) or ""
        match = match_of(names, query.payload)
        if match is not None:
            found.append((names, match))
    return found


def list_of(run_ids: Sequence[str]) -> list[str]:
    """Return ids as asyncpg takes an array."""
    return list(run_ids)


def _is_refusal(error: Exception) -> bool:
    """Say whether waiting for another answer makes no sense: the password, the database."""
    state = getattr(error, "sqlstate", None) or ""
    return state[:2] in ("28", "3D")


async def _no_reset(connection: object) -> None:
    """Keep a connection as it is: its statements leave nothing behind, and a reset is a trip."""
