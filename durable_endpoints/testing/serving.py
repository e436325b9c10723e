"""A server that is started from its command line, killed, and started again: for `verify`."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import tempfile
from typing import Final
from urllib.parse import urlsplit

_READY_S: Final = 30.0
_LOOK_S: Final = 0.05
_STOP_S: Final = 30.0
_TAIL: Final = 2000  # characters of what the server printed


class DoesNotServe(Exception):
    """The server ended by itself, or nobody answers at its address."""


class Served:
    """One process of `command` at a time, in a group of its own, that serves `url`."""

    def __init__(self, command: str, url: str) -> None:
        self._words = shlex.split(command)
        self._url = url
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - until this object is gone

    async def start(self) -> None:
        """Start, and wait until it takes connections.

        Raises: DoesNotServe with what it printed, if it does not within 30 s.
        """
        if await self._answers():
            raise DoesNotServe(f"somebody else serves {self._url} already: end it, or leave out "
                               "--serve")  # fmt: skip
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - the user's own command
                self._words, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DoesNotServe(f"{self._words[0]}: {error}") from error
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._answers():
                    if self._process.poll() is not None:
                        code = self._process.returncode
                        raise DoesNotServe(f"the server ended with {code}: {self.tail()}")
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise DoesNotServe(f"nobody serves {self._url}: {self.tail()}") from None

    async def _answers(self) -> bool:
        parts = urlsplit(self._url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            _, writer = await asyncio.open_connection(parts.hostname, port)
        except OSError:
            return False
        writer.close()
        return True

    def kill(self) -> None:
        """SIGKILL the process and its children; wait for its end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait for its end; SIGKILL if that takes longer than 30 s."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, number)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self) -> str:
        """Return the end of what it printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-_TAIL:].strip()
