"""A server whose lives differ: what it is to die of, and when."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.crash.evidence import DATABASE
from tests.support.server import Server

APP = "tests.apps.crashy:app"
QUIET = ("--log-level", "warning", "--no-access-log")
REACH_S = 45.0  # for a crash point to come up under load, on a machine that has more to do


_SERVERS: list[CrashServer] = []


def kill_all() -> None:
    """Leave no server behind, whatever became of the test."""
    while _SERVERS:
        server = _SERVERS.pop()
        if server.running:
            server.kill()
        elif server._output is not None:  # it ended by itself, and nobody asked how
            server.wait()


class CrashServer(Server):
    """The crash app's server; each life may have an environment of its own.

    `directory` keeps what is counted outside; the store is there too, or at `store`.
    """

    def __init__(
        self, directory: Path, *, store: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.store = store or directory / DATABASE
        super().__init__(APP, directory, env={"STORE": str(self.store), **(env or {})},
                         options=QUIET)  # fmt: skip
        self.early = 0  # lives that were over before the server was ready
        self._usual = dict(self._env)
        self._start_s = 1.0
        _SERVERS.append(self)

    def arm(self, **env: str) -> None:
        """Give the next life these environment variables, and no others of earlier lives."""
        self._env = self._usual | env

    async def begin(self) -> None:
        """Start, without blocking the loop."""
        await asyncio.to_thread(self.start)

    async def random_life(self, chance: random.Random, most_s: float = 0.8) -> None:
        """Start, be killed at a random moment, one time in five before the start is complete."""
        self.arm()
        former = self._process
        starting = asyncio.create_task(self.begin())
        began = time.monotonic()
        if chance.random() < 0.2:
            await asyncio.wait([starting], timeout=self._start_s * chance.uniform(0.5, 1.05))
        else:
            await starting
            self._start_s = time.monotonic() - began
            await asyncio.sleep(chance.uniform(0, most_s))
        self.early += not starting.done()
        while self._process is former and not starting.done():  # not even forked yet
            await asyncio.sleep(0.002)
        self.signal(signal.SIGKILL)
        await asyncio.gather(starting, return_exceptions=True)
        await self.gone(-signal.SIGKILL)

    async def life_to(self, *, leaving: bool = False, **env: str) -> bool:
        """Start with an environment that is to kill it; False if it was still there in the end.

        `leaving` sends SIGTERM once it is at work: it is to die while it drains.
        """
        self.arm(**env)
        starting = asyncio.create_task(self.begin())
        await asyncio.gather(starting, return_exceptions=True)
        if leaving:
            await asyncio.sleep(0.5)
            self.signal(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(self.wait, REACH_S)
        except Exception as error:  # subprocess.TimeoutExpired: the point did not come up
            if not self.running:
                raise AssertionError(self.tail()) from error
            await asyncio.to_thread(self.kill)
            return False
        if code != -signal.SIGKILL:
            raise AssertionError(f"the server ended by itself: {code}\n{self.tail()}")
        return True

    async def gone(self, code: int) -> None:
        """Wait for the end of the process; raises if it ended in another way."""
        found = await asyncio.to_thread(self.wait)
        if found != code:
            raise AssertionError(f"the server ended with {found}, not {code}\n{self.tail()}")
