"""The demo's child processes: the model's, and the app's, which is started again when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import httpx

from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.limits import DRAIN_S

MODEL_START_S: Final = 60.0
APP_START_S: Final = 30.0
# Deaths before the first answer, one after the other, that mean that it will never start.
FALSE_STARTS_MAX: Final = 3
_LOG_SHOWN: Final = 2000


class ChildFailed(Exception):
    """A child process does not start, or cannot be started again; the message says why."""


class ModelProcess:
    """The local model, in a process of its own, which the app's deaths do not touch."""

    def __init__(self, file: Path, log: Path) -> None:
        self._file = file
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Load the model and return the base URL of its server. Raises: ChildFailed."""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "durable_endpoints.demo.model", str(self._file),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if self._process.stdout is None:
            raise ChildFailed("the model's process has no output to read its address from")
        try:
            async with asyncio.timeout(MODEL_START_S):
                address = (await self._process.stdout.readline()).decode().strip()
        except TimeoutError:
            address = ""
        if not address.startswith("http"):
            said = self._log.read_text(errors="replace")[-_LOG_SHOWN:]
            raise ChildFailed(f"the model did not start. Its log, {self._log}, ends with:\n{said}")
        return f"{address}/v1"

    async def ended(self) -> None:
        """Wait until the process is gone."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """End it; it holds nothing worth saving."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class AppProcess:
    """The app's process on a listening socket that outlives it."""

    def __init__(
        self,
        listener: socket.socket,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self._listener = listener
        self._environment = dict(environment)
        self._tell = tell
        self._clock = clock or SystemClock()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start the process and wait for its first answer. Raises: ChildFailed."""
        try:
            await self._start()
        except BaseException:
            self.kill()  # one at a time: a process that does not answer may still own the store
            raise

    async def _start(self) -> None:
        fd = self._listener.fileno()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "durable_endpoints.demo.serve", str(fd),
            stdin=asyncio.subprocess.PIPE, pass_fds=[fd], start_new_session=True,
            env={**os.environ, **self._environment},
        )  # fmt: skip
        answered = asyncio.ensure_future(self._answers())
        died = asyncio.ensure_future(self._process.wait())
        await asyncio.wait({answered, died}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            answered.cancel()
            raise ChildFailed(f"the app's process ended with {_ending(died.result())}")
        died.cancel()
        answered.result()

    async def keep_running(self) -> None:
        """Start the process again whenever it dies. Returns after `stop`. Raises: ChildFailed."""
        false_starts = 0
        while True:
            code = await self._wait()
            if self._stopping:
                return
            died_at = self._clock.monotonic_s()
            self._tell(f"[red]✗[/] the server is dead: {_ending(code)}")
            while True:
                try:
                    await self.start()
                    break
                except ChildFailed:
                    await self._wait()
                    false_starts += 1
                    if false_starts >= FALSE_STARTS_MAX or self._stopping:
                        raise
            false_starts = 0
            took_s = self._clock.monotonic_s() - died_at
            pid = self._process.pid if self._process else 0
            self._tell(f"[green]✓[/] a new one answers after {took_s:.1f} s (pid {pid})")

    async def stop(self) -> None:
        """Let the process hand over its runs and end; kill it if that takes too long."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(DRAIN_S + 5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once; for a person who does not want to wait for `stop`."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _wait(self) -> int:
        return await self._process.wait() if self._process is not None else 0

    async def _answers(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=APP_START_S, trust_env=False) as client:
                await client.get(f"{address(self._listener)}/status")
        except httpx.TransportError as error:
            raise ChildFailed(f"the app does not answer: {error!r}") from error


def address(listener: socket.socket) -> str:
    """Where a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    return f"killed by {signal.Signals(-code).name} ({-code})"
