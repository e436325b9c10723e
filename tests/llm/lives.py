"""A server with many lives: each is a process forked from one that has imported everything.

The providers' libraries take seconds to import; a life starts in a tenth of one.
`python -m tests.llm.lives APP PORT` forks a server at each line that it reads, and writes its
process id; at a life's end it writes `ended`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tests.support.server import READY_S, ROOT, Server


class LivesServer(Server):
    """As `Server`; to be used as a context manager."""

    def __init__(
        self, app: str, directory: Path, *, env: Mapping[str, str] | None = None,
        health: str = "/_durable/health",
    ) -> None:  # fmt: skip
        super().__init__(app, directory, env=env, health=health)
        self._pid = 0
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.llm.lives", app, str(self.port)],
            cwd=directory, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._output, bufsize=0,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def running(self) -> bool:
        return bool(self._pid)

    def start(self) -> LivesServer:
        """Begin a life, and wait until the health route answers."""
        assert not self.running, "the server is running"
        assert self._process is not None and self._process.stdin and self._process.stdout
        self._process.stdin.write(b"\n")
        self._pid = int(self._process.stdout.readline())
        deadline = time.monotonic() + READY_S
        while not self._healthy():
            assert time.monotonic() < deadline, f"not ready after {READY_S:g} s\n{self.tail()}"
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert self._process is not None and self._process.stdout
        os.kill(self._pid, signal.SIGKILL)
        assert self._process.stdout.readline() == b"ended\n"
        self._pid = 0

    def __exit__(self, *failure: object) -> None:
        assert self._process is not None and self._process.stdin
        if self.running:
            self.kill()
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout and self._output
        self._process.stdout.close()
        self._output.close()
        if failure[0] is not None:
            sys.stderr.write(f"\n--- {self.log}\n{self.tail()}\n")


def live(app: object, port: int) -> None:
    """Be one life."""
    import uvicorn

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)  # type: ignore[arg-type]


def main(name: str, port: int) -> None:
    module, _, attribute = name.partition(":")
    app = getattr(import_module(module), attribute)
    asyncio.run(import_module(module).warm())
    assert str(ROOT) in sys.path
    while sys.stdin.readline():
        pid = os.fork()
        if not pid:
            live(app, port)
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
