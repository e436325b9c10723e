"""A store from which a run goes between two looks at its journal."""

from __future__ import annotations

from typing import Any

from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import StoredFrame


class Vanishing(MemoryStore):
    """Somebody else deletes a run when its journal has been looked at so many times."""

    doomed: str | None = None
    looks = 0  # so far
    spared = 0  # looks

    async def read(self, run_id: str, **where: Any) -> list[StoredFrame]:
        """See `Store.read`."""
        frames = await super().read(run_id, **where)
        self.looks += 1
        if run_id == self.doomed and self.looks > self.spared:
            await self.delete(run_id)
        return frames
