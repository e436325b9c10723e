"""A look into the journals of a SQLite store, beside the process that owns the file."""

from __future__ import annotations

import sqlite3

from durable_endpoints.errors import StoreError, StoreRefused
from durable_endpoints.stores.open import open_store
from durable_endpoints.stores.protocol import Store
from durable_endpoints.stores.sqlite import SCHEMA, SQLiteStore, quoted


class SQLiteReader(SQLiteStore):
    """Implements what of `Store` only reads; every write raises StoreFailed.

    Takes no ownership: a connection that neither writes nor checkpoints disturbs nobody.
    """

    async def open(self) -> None:
        """Open the file for reading.

        Raises: StoreRefused if there is no such database, or it is of another release.
        """
        if not self.path.is_file():
            raise StoreRefused(f"there is no database {self.path}: name another one with --store")
        try:
            self._reader = await self._connect(f"file:{quoted(self.path)}?mode=ro")
            schema = await self._read(lambda db: db.execute("pragma user_version").fetchone()[0])
            if schema != SCHEMA:
                raise StoreRefused(
                    f"{self.path} has schema {schema}, this release reads {SCHEMA}: "
                    "read it with the release that wrote it"
                )
        except (StoreError, sqlite3.Error) as error:
            await self.close()
            if isinstance(error, StoreRefused):
                raise
            raise StoreRefused(f"{self.path} cannot be read as a journal: {error}") from error

    async def close(self) -> None:
        """Let the file go."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()


def open_reader(address: str) -> Store:
    """Return a store of an address, or a path, to read from. See `open_store`.

    Raises: ValueError, StoreRefused.
    """
    if address.startswith("sqlite:///"):
        return SQLiteReader(address.removeprefix("sqlite:///"))
    return open_store(address) if "://" in address else SQLiteReader(address)
