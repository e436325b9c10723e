"""A real server process for tests: started, killed, started again on the same port.

    with Server("tests.apps.streams:app", tmp_path) as server:
        ...
        server.kill()      # SIGKILL
        server.start()     # the same port, the same directory

`TCPProxy` stands between a client and the server, and cuts.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ROOT = Path(__file__).parents[2]
READY_S = 30.0
STOP_S = 30.0
PORTS = range(20_000, 32_000)
_given: set[int] = set()
_chance = random.SystemRandom()  # Hypothesis seeds the other one alike in every process


def free_port() -> int:
    """Return a port that nobody listens on and that no outgoing connection is given.

    From below the ephemeral range: a client that tries a port of that range while the server is
    down can be connected to itself. Never one that this process has given out before, nor one of
    another process of the same test run: its server may be down just now, and will come back.
    """
    ours = _ports_of_this_process()
    for port in _chance.sample(ours, len(ours)):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError(f"no free port between {ours.start} and {ours.stop}")


def _ports_of_this_process() -> range:
    """Return the slice of the ports that pytest-xdist's worker has for itself."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    size = len(PORTS) // workers
    return PORTS[worker * size : (worker + 1) * size]


class Server:
    """One uvicorn process at a time, always on the same port.

    Args: `app`, an import string; `directory`, the process's working directory, which keeps the
    store and `server.log` (stdout and stderr of all its lives); `env`, added to this process's
    environment; `options`, further uvicorn arguments; `health`, the path that tells readiness.
    """

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        health: str = "/_durable/health",
        port: int | None = None,
    ) -> None:
        self.app = app
        self.directory = directory
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._env["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(ROOT), self._env.get("PYTHONPATH")])
        )
        self._options = options
        self._health = health
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, and wait until the health route answers. Raises if the process ends before."""
        assert not self.running, "the server is running"
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", self.app,
                "--host", "127.0.0.1", "--port", str(self.port), *self._options,
            ],
            cwd=self.directory, env=self._env, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._healthy():
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended: {self._process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"not ready after {READY_S:g} s\n{self.tail()}")
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM, and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def restart(self) -> None:
        """SIGKILL and start."""
        self.kill()
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does not wait."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout: float = STOP_S) -> int:
        """Wait for the end of the process, for `timeout` seconds at most; return its exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout)
        finally:
            if self._output is not None:
                self._output.close()
                self._output = None
        return code

    def tail(self, lines: int = 60) -> str:
        """Return the end of what the process printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._health, timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.running:
            self.kill()
        if kind is not None and self.log.exists():
            sys.stderr.write(f"\n--- {self.log}\n{self.tail()}\n")


class TCPProxy:
    """A TCP proxy to a port of this machine, `async with`; `url` is where it listens.

    `cut()` resets every connection; `cut_after(n)` does so by itself once a connection has
    brought `n` bytes from the server (counted anew for each); `refusing` makes it reset whoever
    connects; `stall()` keeps the connections open and forwards nothing more on them; `edit`
    changes what comes from the server, and must not change its length.
    """

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.refusing = False
        self.connections = 0
        self.edit: Callable[[bytes], bytes] = bytes
        self._upstream = port
        self._cut_after: list[int] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut_after(self, *sizes: int) -> None:
        """Cut the next connections, one for each size, once so many bytes came down."""
        self._cut_after = list(sizes)

    def cut(self) -> None:
        """Reset all connections."""
        for writer in list(self._open):
            _reset(writer)

    def stall(self) -> None:
        """Let no more bytes through on the connections there are, and keep them open."""
        for flowing in self._flowing:
            flowing.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: let_go(writer))  # cancelled before it began, too

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        limit = self._cut_after.pop(0) if self._cut_after else None
        if self.refusing:
            _reset(writer)
            return
        flowing = asyncio.Event()
        flowing.set()
        up: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[bool]] = []
        try:
            down, up = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._open.add(writer)
            self._flowing.add(flowing)
            pumps = [
                asyncio.create_task(_pump(down, writer, flowing, limit, self.edit)),
                asyncio.create_task(_pump(reader, up, flowing, None, bytes)),
            ]
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if all(pump.result() for pump in done):
                writer.close()  # an end of file from either side ends both
        except OSError:
            pass  # either side went away: so does the other, below
        finally:
            self._open.discard(writer)
            self._flowing.discard(flowing)
            for pump in pumps:
                pump.cancel()
            if up is not None:
                up.close()
            _reset(writer)
            # Last: whoever ends the proxy may cancel this, too.
            await asyncio.gather(*pumps, return_exceptions=True)


def let_go(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, unless somebody is closing it."""
    if not writer.is_closing():
        writer.transport.abort()


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event,
    limit: int | None, edit: Callable[[bytes], bytes],
) -> bool:  # fmt: skip
    """Copy until the end (True), or until `limit` bytes are through (False)."""
    passed = 0
    while data := await source.read(65536):
        await flowing.wait()
        data = edit(data)
        if limit is not None and passed + len(data) >= limit:
            sink.write(data[: limit - passed])
            with suppress(OSError):
                await sink.drain()
            return False
        passed += len(data)
        sink.write(data)
        await sink.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection the hard way: the peer sees an error, no end of file."""
    if not writer.is_closing():
        connection = writer.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
