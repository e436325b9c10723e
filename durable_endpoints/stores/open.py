"""Store addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durable_endpoints.errors import StoreRefused
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from durable_endpoints.stores.protocol import Store

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")


def open_store(address: str | Store) -> Store:
    """Return the store of an address.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user@host/database`, `memory:`.

    Raises: ValueError for any other; StoreRefused without what an extra installs.
    """
    if not isinstance(address, str):
        return address
    if address in ("memory:", "memory://"):
        return MemoryStore()
    if address.startswith(_SQLITE) and len(address) > len(_SQLITE):
        return SQLiteStore(address[len(_SQLITE) :])
    if address.startswith(_POSTGRES):
        return _open_postgres(address)
    raise ValueError(
        f"store={address!r}: use sqlite:///path.db, postgresql://user@host/database, "
        "or memory: for tests"
    )


def _open_postgres(address: str) -> Store:
    try:
        from durable_endpoints.stores.postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise StoreRefused(
            "a PostgreSQL store needs asyncpg: pip install 'durable-endpoints[postgres]'"
        ) from error
    return PostgresStore(address)
