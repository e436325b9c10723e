"""One node among the others on a PostgreSQL: implements `Nodes`."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from durable_endpoints import limits
from durable_endpoints.clock import Clock
from durable_endpoints.errors import StoreError
from durable_endpoints.lent import Demand, Grant
from durable_endpoints.records import Frame
from durable_endpoints.stores.nodes import Listener, Message, Standing
from durable_endpoints.stores.postgres_lease import Lease
from durable_endpoints.stores.postgres_link import Address, Connection, sql
from durable_endpoints.stores.postgres_news import News
from durable_endpoints.stores.postgres_rows import packed, unpacked
from durable_endpoints.stores.protocol import PATIENCE_S

logger = logging.getLogger("durable_endpoints")

Ask = Callable[[Callable[[Connection], Awaitable[Any]]], Awaitable[Any]]

_UNSHIPPED: Final = (
    "select unshipped from nodes join runs on runs.owner = nodes.node"
    " where runs.run_id = $1 and runs.status = 'running'"
)
_WATCH: Final = "watch"  # <node> <run>…: tell that node of the runs' commits
_MOVED: Final = "moved"  # <run>…: they have been committed for
_MAIL: Final = "mail"  # there are messages
_ANSWER: Final = "answer"  # there are answers
_ORPHANS: Final = "orphans"  # <node>: it has handed its runs over


class PostgresNodes:
    """News, messages, and the lease of one node."""

    def __init__(self, address: Address, node: str, lease: Lease, ask: Ask, clock: Clock) -> None:
        self.node = node
        self.listener: Listener | None = None
        self._lease = lease
        self._ask = ask
        self._clock = clock
        self._news = News(address, node, self._hear)
        self._watchers: dict[str, dict[str, float]] = {}  # run -> node -> until when
        self._away: Callable[[], str | None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._fenced = False

    def start(self, away: Callable[[], str | None]) -> None:
        """Begin to listen, and to look after the lease."""
        self._away = away
        self._news.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._look_after()), loop.create_task(self._clean())]

    async def stop(self) -> None:
        """End; what is told last is told."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._news.stop()

    # --- how it is

    @property
    def holds_lease(self) -> bool:
        """See `Nodes.holds_lease`."""
        return self._lease.held

    @property
    def away(self) -> str | None:
        """See `Nodes.away`."""
        return self._away()

    @property
    def poll_s(self) -> float:
        """See `Nodes.poll_s`."""
        return limits.NODES_POLL_S if self._news.works else limits.NODES_POLL_DEAF_S

    async def _look_after(self) -> None:
        """Tell the listener when the lease is over."""
        while True:
            await asyncio.sleep(limits.LEASE_LOOK_S)
            self.check_lease()

    def check_lease(self) -> None:
        """Tell the listener if the lease is over, or was."""
        if not self._lease.held and not self._fenced and self.listener is not None:
            reason = self._lease.trouble or "the process was paused"
            self.listener.fenced(f"the lease of this node is over: {reason}")
        self._lease.lapsed = False
        self._fenced = not self._lease.held

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(limits.MAIL_KEPT_S)
            try:
                await self._ask(_forget)
            except StoreError as error:
                logger.info("old messages are kept for longer: %s", error)

    # --- news

    def committed(self, batch: Sequence[Frame], fenced: frozenset[str]) -> None:
        """Tell the nodes that follow runs of this batch."""
        if not self._watchers:
            return
        now_s = self._clock.monotonic_s()
        moved: dict[str, list[str]] = defaultdict(list)
        for frame in batch:
            if frame.run_id not in self._watchers or frame.run_id in fenced:
                continue
            watchers = self._watchers[frame.run_id]
            for node, until_s in list(watchers.items()):
                if until_s < now_s:
                    del watchers[node]
                else:
                    moved[node].append(frame.run_id)
            if not watchers:
                del self._watchers[frame.run_id]
        for node, run_ids in moved.items():
            self._news.tell(node, _MOVED, run_ids)

    async def leave(self) -> None:
        """Hand over all runs of this node, and tell the others."""
        PATIENCE_S.set(limits.STORE_PATIENCE_S)
        await self._ask(lambda c: c.execute(sql("postgres/leave"), self.node))
        place, told = self._news.place, f"{_ORPHANS} {self.node}"
        await self._ask(lambda c: c.execute(sql("postgres/notify"), [place], [told]))

    def handed_over(self) -> None:
        """Tell the others that runs of this node are anybody's now."""
        self._news.tell(None, _ORPHANS, [self.node])

    def _hear(self, verb: str, words: list[str]) -> None:
        if verb == _WATCH:
            self._watch(words[0], words[1:])
        elif self.listener is None:
            return
        elif verb == _MOVED:
            self.listener.moved(words)
        elif verb == _MAIL:
            self.listener.mailed()
        elif verb == _ANSWER:
            self.listener.answered()
        elif verb == _ORPHANS and words != [self.node]:
            self.listener.orphaned()

    def _watch(self, node: str, run_ids: Sequence[str]) -> None:
        until_s = self._clock.monotonic_s() + limits.WATCH_S
        new = [i for i in run_ids if node not in self._watchers.get(i, ())]
        for run_id in run_ids:
            self._watchers.setdefault(run_id, {})[node] = until_s
        if new:  # there may have been commits since it looked
            self._news.tell(node, _MOVED, new)

    async def follow(self, run_ids: Sequence[str]) -> Sequence[Standing]:
        """See `Nodes.follow`."""
        rows = await self._ask(lambda c: c.fetch(sql("postgres/follow"), list(run_ids)))
        driven: dict[str, list[str]] = defaultdict(list)
        for run_id, *_, owner in rows:
            if owner not in ("", self.node):
                driven[owner].append(run_id)
        for owner, ids in driven.items():
            for at in range(0, len(ids), limits.WATCHED_TOLD_MAX):
                part = ids[at : at + limits.WATCHED_TOLD_MAX]
                self._news.tell(owner, f"{_WATCH} {self.node}", part)
        return [Standing(*row[:4]) for row in rows]

    async def unshipped(self, run_id: str) -> bytes | None:
        """See `Nodes.unshipped`."""
        said: str | None = await self._ask(lambda c: c.fetchval(_UNSHIPPED, run_id))
        return said.encode() if said is not None else None

    # --- messages

    async def deposit(self, message: Message, *, answer: bool) -> bool:
        """See `Nodes.deposit`."""
        values = (
            message.run_id, packed(message.ident), message.kind, message.data,
            self.node if answer else "", self.node,
        )  # fmt: skip
        owner = await self._ask(lambda c: c.fetchval(sql("postgres/deposit"), *values))
        if owner is not None:
            self._news.tell(owner, _MAIL)
        return owner is not None

    async def mail(self) -> Sequence[Message]:
        """See `Nodes.mail`."""
        values = (self.node, limits.LIST_ROWS_MAX)
        rows = await self._ask(lambda c: c.fetch(sql("postgres/mail"), *values))
        return [Message(run_id, unpacked(i) or "", kind, data) for run_id, i, kind, data in rows]

    async def answer(self, message: Message, answer: bytes) -> None:
        """See `Nodes.answer`."""
        values = (message.run_id, packed(message.ident), answer)
        sender = await self._ask(lambda c: c.fetchval(sql("postgres/answer"), *values))
        if sender is not None:
            self._news.tell(sender, _ANSWER)

    async def answer_to(self, message: Message) -> bytes | None:
        """See `Nodes.answer_to`."""
        values = (message.run_id, packed(message.ident))
        found: bytes | None = await self._ask(
            lambda c: c.fetchval(sql("postgres/answer_to"), *values)
        )
        return found

    async def withdraw(self, message: Message) -> None:
        """See `Nodes.withdraw`."""
        values = (message.run_id, packed(message.ident))
        await self._ask(lambda c: c.execute(sql("postgres/withdraw"), *values))

    # --- rate limits

    async def lend(self, demand: Demand) -> Grant:
        """See `Lender.lend`."""
        values = (
            packed(demand.name), packed(demand.key), self.node, demand.rate, demand.capacity,
            demand.concurrent, demand.tokens_had, demand.tokens, demand.uses_had,
            demand.uses_spare, demand.uses, demand.ahead_s, limits.QUOTA_FRESH_S, demand.pause_s,
        )  # fmt: skip
        tokens, uses, start_s, base_s, others = await self._ask(
            lambda c: c.fetchrow(sql("postgres/lend"), *values)
        )
        return Grant(tokens, uses, start_s, base_s or 0.0, others)


async def _forget(connection: Connection) -> None:
    for name in ("forget_mail", "forget_quotas"):
        await connection.execute(sql(f"postgres/{name}"), limits.MAIL_KEPT_S)
