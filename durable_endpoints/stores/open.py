"""Store addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from durable_endpoints.stores.protocol import Store

_SQLITE: Final = "sqlite:///"


def open_store(address: str | Store) -> Store:
    """Return the store of an address: `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory:`.

    Raises: ValueError for any other.
    """
    if not isinstance(address, str):
        return address
    if address in ("memory:", "memory://"):
        return MemoryStore()
    if address.startswith(_SQLITE) and len(address) > len(_SQLITE):
        return SQLiteStore(address[len(_SQLITE) :])
    raise ValueError(f"store={address!r}: use sqlite:///path.db, or memory: for tests")
