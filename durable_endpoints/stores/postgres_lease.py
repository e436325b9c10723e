"""A node's lease: its right to drive runs, renewed in a thread of its own.

A handler that keeps the event loop for long costs its neighbours time, not the node its runs. The
database's clock says when a lease is over for others; for the node itself it is over earlier, by
its own monotonic clock, counted from just before the last renewal that succeeded was sent.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Final

from durable_endpoints.clock import Clock
from durable_endpoints.errors import StoreRefused
from durable_endpoints.limits import (
    LEASE_FENCE_SHARE,
    LEASE_RENEW_SHARE,
    NODES_KEPT_S,
    POSTGRES_RETRY_S,
)
from durable_endpoints.stores.postgres_link import Address, Link, sql

logger = logging.getLogger("durable_endpoints")

# A clock that is off by more than this makes timers of several nodes visibly early or late.
_SKEW_MS_MAX: Final = 1000


class Lease:
    """The lease of one node. All but the thread's own part is called from the event loop."""

    def __init__(self, address: Address, node: str, host: str, clock: Clock) -> None:
        self.trouble: str | None = None  # why the last renewal failed
        self.skew_ms = 0  # how far the database's clock is ahead of this node's
        self.lapsed = False  # it was over for a while: set here, taken back by who has seen to it
        self._ttl_s = address.lease_ttl_s
        self._node = node
        self._host = host
        self._clock = clock
        self._link = Link(address, f"durable {node} lease")
        self._renewed_s = float("-inf")
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._began = threading.Event()

    @property
    def held(self) -> bool:
        """Whether nobody else may have this node's runs, with a margin."""
        return not self.lapsed and not self._is_over()

    def _is_over(self) -> bool:
        since_s = self._clock.monotonic_s() - self._renewed_s
        return since_s >= self._ttl_s * LEASE_FENCE_SHARE

    async def start(self) -> None:
        """Enter the node, and renew from now on. The first attempt is over when it returns."""
        self._thread = threading.Thread(target=self._run, name="durable lease", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._began.wait)

    async def stop(self) -> None:
        """Renew no more; the row stays."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(thread.join)
        self._renewed_s = float("-inf")

    def _run(self) -> None:
        asyncio.run(self._renew_until_stopped())

    async def _renew_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        while not stop.is_set():
            wait_s = POSTGRES_RETRY_S[1]
            try:
                await self._renew()
                wait_s = self._ttl_s * LEASE_RENEW_SHARE
            except StoreRefused as error:
                self.trouble = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt decides
                self._link.drop()
                self.trouble = f"{type(error).__name__}: {error}"
            self._began.set()
            try:
                await asyncio.wait_for(stop.wait(), wait_s)
            except TimeoutError:
                continue
        await self._link.close()

    async def _renew(self) -> None:
        entered = self._renewed_s > float("-inf")
        sent_s = self._clock.monotonic_s()
        async with asyncio.timeout(self._ttl_s * LEASE_RENEW_SHARE):
            connection = await self._link.connection()
            sent_s = self._clock.monotonic_s()
            now_ms = await connection.fetchval(
                sql("postgres/enter"), self._node, self._ttl_s, self._host
            )
            if not entered:
                await connection.execute(sql("postgres/forget_nodes"), NODES_KEPT_S)
        if entered and self._is_over():  # others may have taken runs, and have them now
            self.lapsed = True
        self._renewed_s = sent_s
        self.trouble = None
        self._note_skew(now_ms - self._clock.now_ms())

    def _note_skew(self, skew_ms: int) -> None:
        if abs(skew_ms) > _SKEW_MS_MAX >= abs(self.skew_ms):
            logger.warning(
                "this node's clock is %.1f s off the database's: timers may be early or late by "
                "that; let an NTP client set both", skew_ms / 1000,
            )  # fmt: skip
        self.skew_ms = skew_ms
