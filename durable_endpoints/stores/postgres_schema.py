"""The tables in a schema of their own: made and migrated at start, forward only."""

from __future__ import annotations

from typing import Final

import asyncpg

from durable_endpoints.errors import StoreRefused
from durable_endpoints.stores.postgres_link import Address, Connection, sql

SCHEMA: Final = 4
_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('durable-endpoints ' || $1, 0))"
_VERSION: Final = "select max(number) from migrations"


async def migrate(connection: Connection, address: Address) -> None:
    """Bring the schema up to this release's. Several nodes may do so at once.

    Raises: StoreRefused if it is newer, or may not be made.
    """
    if await _version(connection, address) == SCHEMA:
        return
    try:
        async with connection.transaction():
            await connection.execute(_LOCK, address.schema)
            if not await _exists(connection, address):
                await connection.execute(f"create schema if not exists {address.schema}")
            await connection.execute(
                "create table if not exists migrations (number integer primary key,"
                " applied_at timestamptz not null default now())"
            )
            for number in range(await _version(connection, address) + 1, SCHEMA + 1):
                await connection.execute(sql(f"postgres_{number:04}"))
                await connection.execute("insert into migrations (number) values ($1)", number)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRefused(
            f"the tables of {address.shown} cannot be made: {error}. Let its owner run the program "
            f"once, or `create schema {address.schema}` for this role."
        ) from error


async def _exists(connection: Connection, address: Address) -> bool:
    asked = "select to_regnamespace($1) is not null"
    return bool(await connection.fetchval(asked, address.schema))


async def _version(connection: Connection, address: Address) -> int:
    there = "select to_regclass($1) is not null"
    if not await connection.fetchval(there, f"{address.schema}.migrations"):
        return 0
    version: int = await connection.fetchval(_VERSION) or 0
    if version > SCHEMA:
        raise StoreRefused(
            f"{address.shown} has schema {version}; this release knows {SCHEMA}. "
            "Upgrade durable-endpoints, or name another ?schema=."
        )
    return version
