"""Starts a contender in a process of its own, waits until it serves, kills it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bench.contenders import Contender

ROOT = Path(__file__).resolve().parent.parent
_TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A running contender. Its files are in `directory`, which outlives it."""

    def __init__(
        self, contender: Contender, directory: Path, *, env: dict[str, str] | None = None
    ) -> None:
        self.contender = contender
        self.directory = directory
        self.port = free_port()
        self.started_at = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), cwd=ROOT, env=self._env(env or {}), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _command(self) -> list[str]:
        filled = {"app": self.contender.app, "port": str(self.port)}
        words = [word.format_map(filled) for word in self.contender.command]
        return [self.contender.python, *words]

    def _env(self, extra: dict[str, str]) -> dict[str, str]:
        own = {
            "PYTHONPATH": str(ROOT),
            "BENCH_DIR": str(self.directory),
            "BENCH_EXECUTIONS": str(self.directory / "executions.log"),
            "BENCH_PORT": str(self.port),
        }
        return {**os.environ, **own, **self.contender.env, **extra}

    def wait_ready(self, limit_s: float = 60.0) -> float:
        """Return the seconds from the start until the contender serves."""
        method, path = self.contender.ready
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.contender.title} ended: {self.tail()}")
            if call(self.port, method, path, timeout=5)[0] == 200:
                return time.monotonic() - self.started_at
            if time.monotonic() - self.started_at > limit_s:
                raise RuntimeError(f"{self.contender.title} does not serve: {self.tail()}")
            time.sleep(0.003)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process and its descendants have used so far."""
        stats = dict(_all_stats())
        family = self._family(stats)
        used = sum(int(stats[pid][11]) + int(stats[pid][12]) for pid in family if pid in stats)
        return used / _TICKS

    def _family(self, stats: dict[int, list[str]]) -> set[int]:
        """Return the process and all its descendants."""
        family, found = {self.process.pid}, -1
        while found != len(family):
            found = len(family)
            family |= {pid for pid, fields in stats.items() if int(fields[1]) in family}
        return family

    def rss_bytes(self) -> int:
        """Return the memory that the process holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def pin(self, core: int) -> None:
        """Keep all threads of the process, and those that they start, on one core."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})

    def kill(self) -> None:
        """kill -9, its children too: nothing is flushed, nothing is closed.

        Children may be in groups of their own, as PostgreSQL's are.
        """
        family = self._family(dict(_all_stats()))
        os.killpg(self.process.pid, signal.SIGKILL)
        for pid in family - {self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for a stop in good order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)

    def tail(self) -> str:
        """Return the end of what the server printed."""
        return self.log.read_text(errors="replace")[-2000:]

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()  # whoever wants a stop in good order has called stop()
        if error is not None:
            error.add_note(f"{self.contender.title}'s server printed: {self.tail()}")


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    """Give each process's id and the fields of its stat line, from its state on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we were looking


def get(
    port: int, path: str, *, timeout: float = 30, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Return status and body of a GET; status 0 if nobody listens or the connection is cut."""
    return call(port, "GET", path, timeout=timeout, headers=headers)[:2]


def call(
    port: int,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    timeout: float = 30,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes, dict[str, str]]:
    """Return status, body and headers (lower case) of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read(), found
    except (OSError, http.client.HTTPException):
        return 0, b"", {}
    finally:
        connection.close()
