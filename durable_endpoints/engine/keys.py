"""Idempotency keys that are being taken: one (principal, route, key) is one run (I7)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from durable_endpoints.errors import Fenced
from durable_endpoints.stores.protocol import Store

if TYPE_CHECKING:
    from durable_endpoints.engine.run import LiveRun


class Keys:
    """Keys whose run is not durable yet; from then on the store finds it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places: dict[tuple[str | None, str, str], asyncio.Future[str | None]] = {}

    async def reserve(self, principal: str | None, name: str, key: str) -> str | None:
        """Return the run that has this idempotency key, or reserve the key (I7).

        After None the caller must see to `settle_by`.
        """
        place = (principal, name, key)
        while True:
            waiting = self._places.get(place)
            if waiting is None:
                break
            found = await asyncio.shield(waiting)
            if found is not None:
                return found
        self._places[place] = asyncio.get_running_loop().create_future()
        record = None
        try:
            record = await self._store.find(principal, name, key)
        except BaseException:
            self.settle(principal, name, key, None)
            raise
        if record is not None:
            self.settle(principal, name, key, record.run_id)
            return record.run_id
        return None

    def settle(self, principal: str | None, name: str, key: str, run_id: str | None) -> None:
        """Say which run took a reserved key; None if none did."""
        waiting = self._places.pop((principal, name, key), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(run_id)

    async def settle_by(
        self, principal: str | None, name: str, key: str, run: LiveRun | None
    ) -> None:
        """Free a reserved key once its run is durable, or never will be: the store knows then.

        `run`: the one that was begun with it; None if none was.
        """
        try:
            if run is not None:
                await run.durable(0)
        except Fenced:  # what it had appended may be on its way to the store all the same
            assert run is not None
            await run.log.flush()
        finally:
            known = run.id if run is not None and run.durable_seq >= 0 else None
            self.settle(principal, name, key, known)
