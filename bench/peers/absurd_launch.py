"""Starts a PostgreSQL server of its own, puts Absurd's schema into it, and serves the app.

The app listens on the port given as the only argument. The database is in BENCH_DIR, its settings
are PostgreSQL's defaults. BENCH_PG_BIN is where PostgreSQL's programs are.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = Path(os.environ["BENCH_PG_BIN"])


def _as_user() -> dict[str, object]:
    """PostgreSQL refuses to run as root; its package's own user then runs it."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _start(data: Path, port: int) -> None:
    who = _as_user()
    if not (data / "PG_VERSION").exists():
        data.mkdir(parents=True, exist_ok=True)
        if who:
            shutil.chown(data, "postgres")
        initdb = [str(PROGRAMS / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)  # type: ignore[call-overload]
    (data / "postmaster.pid").unlink(missing_ok=True)  # its owner was killed
    command = [
        str(PROGRAMS / "postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
    ]  # fmt: skip
    subprocess.Popen(command, cwd="/", **who)  # type: ignore[call-overload]


def _wait(url: str, limit_s: float = 30) -> None:
    until = time.monotonic() + limit_s
    command = [str(PROGRAMS / "pg_isready"), "-q", "-d", url]
    while subprocess.run(command, check=False).returncode != 0:
        if time.monotonic() > until:
            sys.exit(f"PostgreSQL does not answer at {url}")
        time.sleep(0.02)


def main() -> None:
    directory = Path(os.environ["BENCH_DIR"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"postgresql://bench@127.0.0.1:{port}/postgres"
    fresh = not (directory / "pg" / "PG_VERSION").exists()
    _start(directory / "pg", port)
    _wait(url)
    if fresh:
        ctl = str(Path(sys.executable).with_name("absurdctl"))
        subprocess.run([ctl, "init", "-d", url], check=True)
    os.environ["BENCH_POSTGRES"] = url
    uvicorn = [
        sys.executable, "-m", "uvicorn", "bench.peers.absurd_app:app", "--host", "127.0.0.1",
        "--port", sys.argv[1], "--loop", "uvloop", "--http", "httptools", "--no-access-log",
        "--log-level", "warning",
    ]  # fmt: skip
    os.execv(sys.executable, uvicorn)


if __name__ == "__main__":
    main()
