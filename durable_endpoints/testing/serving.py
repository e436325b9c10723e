"""Servers that `verify` kills: one that it starts itself, or whose process id a file holds."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_READY_S: Final = 30.0
_LOOK_S: Final = 0.05
_STOP_S: Final = 30.0
_TAIL: Final = 2000  # characters of what the server printed


class DoesNotServe(Exception):
    """The server ended by itself, nobody answers at its address, or it cannot be killed."""


def kill_named(file: Path) -> str:
    """SIGKILL the process whose id is in a file; returns why there is none, "" if there was one.

    Raises: DoesNotServe if it is there, and may not be killed.
    """
    try:
        text = file.read_bytes()[:40].decode(errors="replace").strip()
    except FileNotFoundError:
        return f"{file} is not there; whoever starts the server has to write its process id to it"
    except OSError as error:
        raise DoesNotServe(f"the process id cannot be read: {error}") from error
    if not text.isdecimal() or int(text) < 2:  # 0 stands for this very group, 1 is init
        return f"{file} holds {text!r}, which is no server's process id"
    try:
        os.kill(int(text), signal.SIGKILL)
    except (ProcessLookupError, OverflowError):
        return f"{file} names process {text}, which is not there"
    except OSError as error:
        raise DoesNotServe(f"process {text} of {file} cannot be killed: {error}; verify as the "
                           "user that it runs as") from error  # fmt: skip
    return ""


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
        """SIGKILL the process and its children; wait for its end.

        Raises: DoesNotServe with what it printed, if it has ended by itself.
        """
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise DoesNotServe(f"the server ended by itself, with {code}: {self.tail()}")
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
