"""News between nodes by LISTEN and NOTIFY, on a connection of their own.

A commit that notifies holds a lock of the whole database, so no journal's commit does. News are
hints: whoever gets them looks for itself, and looks without them, too, only less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from durable_endpoints import limits
from durable_endpoints.errors import StoreRefused
from durable_endpoints.stores.postgres_link import Address, Connection, Link, sql

logger = logging.getLogger("durable_endpoints")

# A notification holds 8,000 bytes; a run id and its space are 37.
_IDS_MAX: Final = 200

Hear = Callable[[str, list[str]], None]  # a verb, and its words


class News:
    """What this node tells the others, and hears from them."""

    def __init__(self, address: Address, node: str, hear: Hear) -> None:
        self.works = False  # whether a notification of our own came back
        self.place = f"d_{address.schema}"
        self._node = node
        self._hear = hear
        self._link = Link(address, f"durable {node} news")
        self._told: list[tuple[str, str]] = []
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen and to tell."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._link.close()

    def tell(self, node: str | None, verb: str, words: Iterable[str] = ()) -> None:
        """Tell one node, or all, as soon as may be; lost if PostgreSQL is away."""
        channel = self.place if node is None else f"{self.place}_{node}"
        left: Sequence[str] = list(words)
        while True:
            self._told.append((channel, " ".join([verb, *left[:_IDS_MAX]])))
            left = left[_IDS_MAX:]
            if not left:
                break
        self._more.set()

    async def _run(self) -> None:
        wait_s, longest_s = limits.POSTGRES_RETRY_S
        while True:
            try:
                await self._listen()
                wait_s = limits.POSTGRES_RETRY_S[0]
                await self._tell_on(await self._link.connection())
            except StoreRefused as error:
                logger.warning("no news of other nodes: %s", error)
            except Exception as error:  # noqa: BLE001 - whatever it is, looking goes on without
                logger.info("no news of other nodes for now: %s: %s", type(error).__name__, error)
            self.works = False
            self._link.drop()
            self._told.clear()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    async def _listen(self) -> None:
        connection = await self._link.connection()
        # What is told is no promise: its commit waits for no disk.
        await connection.execute("set synchronous_commit = off")
        for channel in (self.place, f"{self.place}_{self._node}"):
            await connection.add_listener(channel, self._heard)
        connection.add_termination_listener(lambda _: self._more.set())
        self.tell(self._node, "works")

    async def _tell_on(self, connection: Connection) -> None:
        while not connection.is_closed():
            await self._more.wait()
            self._more.clear()
            told, self._told = self._told, []
            if told:
                channels, texts = [channel for channel, _ in told], [text for _, text in told]
                async with asyncio.timeout(limits.POSTGRES_ANSWER_S):
                    await connection.execute(sql("postgres/notify"), channels, texts)

    def _heard(self, _: Any, __: int, ___: str, payload: object) -> None:
        verb, *words = str(payload).split(" ")
        if verb == "works":
            self.works = True
        else:
            self._hear(verb, words)
