"""Connections to PostgreSQL: addresses, safe settings, what an error means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

import asyncpg

from durable_endpoints import limits
from durable_endpoints.errors import StoreRefused

Connection: TypeAlias = "asyncpg.Connection[Any]"

_SQL: Final = Path(__file__).parent / "sql"
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,39}")
# A commit that these allow to be lost, or half written, is none (I1).
_WEAK: Final = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
_SESSION: Final = {
    "default_transaction_isolation": "read committed",  # a statement waits, then sees the newest
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "4s",
    # Rows are few, known by their keys: a plan for that is right from the first row on, however
    # old the statistics are.
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}


@cache
def sql(name: str, *sections: str) -> str:
    """Return a statement of ours by its name, with those of its sections that are named.

    A section may lie within another one.
    """
    kept: list[str] = []
    around: list[bool] = []  # of each section around the line: whether it is wanted
    for line in (_SQL / f"{name}.sql").read_text().splitlines():
        mark = line.strip()
        if mark.startswith("--+ "):
            around.append(mark.removeprefix("--+ ") in sections)
        elif mark == "--.":
            around.pop()
        elif all(around):
            kept.append(line)
    return "\n".join(kept)


@dataclass(frozen=True, slots=True)
class Address:
    """A store address, taken apart. `dsn` is what asyncpg connects to."""

    dsn: str
    schema: str
    lease_ttl_s: float
    shown: str  # for messages: without a password
    target: str | None

    @classmethod
    def parse(cls, address: str) -> Address:
        """Take `postgresql://user@host/database?schema=…&lease_ttl=…` apart.

        What is not ours in the query is asyncpg's: `sslmode`, `target_session_attrs` and so on.

        Raises: StoreRefused for a schema or a lease that cannot be.
        """
        parts = urlsplit(address)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        schema = query.pop("schema", "durable")
        ttl = query.pop("lease_ttl", str(limits.LEASE_TTL_S))
        if not _SCHEMA.fullmatch(schema):
            raise StoreRefused(
                f"schema={schema!r}: choose up to 40 of a-z, 0-9 and _, a letter first"
            )
        least = limits.LEASE_TTL_S_MIN
        if not re.fullmatch(r"\d+(\.\d+)?", ttl) or float(ttl) < least:
            raise StoreRefused(f"lease_ttl={ttl!r}: give seconds, at least {least:g}")
        # A standby takes no writes: of several hosts, the one that does is meant.
        target = None if "target_session_attrs" in query else "primary"
        dsn = parts._replace(query=urlencode(query)).geturl()
        return cls(dsn, schema, float(ttl), f"{_shown(parts)}?schema={schema}", target)


def _shown(parts: SplitResult) -> str:
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}"


class Trouble(Enum):
    """What an error says of the statement that raised it."""

    AWAY = auto()  # no answer, or the last words of a server that stops: the outcome is unknown
    BUSY = auto()  # rolled back, and may go well the next time
    DATA = auto()  # rolled back: a value that PostgreSQL does not take
    BUG = auto()  # rolled back, and never will go well

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        """Say what an error means."""
        if not isinstance(error, asyncpg.PostgresError):
            lost = isinstance(error, OSError | TimeoutError | EOFError)
            return cls.AWAY if lost or _is_closed(error) else cls.BUG
        state = error.sqlstate or ""
        if error.severity_en in ("FATAL", "PANIC") or state[:2] in ("08", "57"):
            return cls.AWAY
        # Deadlocks and timeouts of locks, no room or memory, a primary that is none any more.
        if state[:2] in ("40", "53", "58") or state in ("55P03", "25006"):
            return cls.BUSY
        return cls.DATA if state[:2] in ("22", "23", "54") else cls.BUG


def _is_closed(error: Exception) -> bool:
    # asyncpg has no type of its own for a connection that went away between two calls.
    internal = asyncpg.exceptions.InternalClientError
    return isinstance(error, internal) or (
        isinstance(error, asyncpg.InterfaceError) and "clos" in str(error)
    )


async def connect(address: Address, name: str) -> Connection:
    """Return a new connection whose settings are known to be safe.

    Raises: StoreRefused if they are not; asyncpg's errors.
    """
    more: dict[str, Any] = {} if address.target is None else {"target_session_attrs": "primary"}
    connection: Connection = await asyncpg.connect(
        address.dsn,
        timeout=limits.POSTGRES_ANSWER_S,
        server_settings={**_SESSION, "search_path": address.schema, "application_name": name},
        **more,
    )
    try:
        await _refuse_weakness(connection, address)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _refuse_weakness(connection: Connection, address: Address) -> None:
    asked = "select name, setting from pg_settings where name = any($1)"
    rows = await connection.fetch(asked, list(_WEAK))
    weak = [f"{name} = {value}" for name, value in rows if value == _WEAK[name]]
    if weak:
        raise StoreRefused(
            f"{address.shown} runs with {', '.join(weak)}: a commit could be lost after it was "
            "acknowledged. Turn it on in postgresql.conf (or for the role), and start again."
        )


class Link:
    """One connection, made again when it was lost. `name` is how the server's views show it."""

    def __init__(self, address: Address, name: str) -> None:
        self.address = address
        self.name = name
        self.former: list[tuple[str, int]] = []  # names and processes of those before
        self._made = 0
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """Return the connection.

        Raises: StoreRefused; asyncpg's errors if none can be made now.
        """
        if self._connection is None or self._connection.is_closed():
            self.drop()
            self._made += 1
            name = f"{self.name} {self._made}"
            self._connection = await connect(self.address, name)
            self._process = (name, self._connection.get_server_pid())
        return self._connection

    def drop(self) -> None:
        """Let the connection go without a word: whoever waits for its answer is told."""
        if self._connection is not None:
            self.former.append(self._process)
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close it in good order."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=limits.POSTGRES_ANSWER_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
