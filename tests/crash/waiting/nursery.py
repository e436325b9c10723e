"""Server processes that begin quickly: each is forked from one that has imported what they need.

`python -m tests.crash.waiting.nursery PORT` reads a line of JSON, the environment variables of the
next life, forks, and writes its process id; at its end it writes the exit code. Nothing but
modules is there before the fork: the app is made, and the store opened, in the child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tests.crash.process import CrashServer
from tests.support.server import READY_S, STOP_S

MODULES = (
    "uvicorn", "uvicorn.protocols.http.auto", "uvicorn.loops.auto", "uvicorn.lifespan.on",
    "fastapi", "httpx", "durable_endpoints", "aiosqlite", "tests.crash.waiting.points",
)  # fmt: skip
APP = "tests.crash.waiting.app"


class WaitingServer(CrashServer):
    """The server of the app of these tests; see `CrashServer`."""

    def __init__(
        self, directory: Path, sink_url: str = "http://127.0.0.1:1",
        env: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(directory, env={"SINK": sink_url, **(env or {})})
        self._nursery: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def running(self) -> bool:
        return bool(self._pid) and not self._ready(0)

    def start(self) -> WaitingServer:
        """Begin a life, and wait until it answers. Raises if it ends before."""
        assert not self._pid, "the server is running"
        nursery = self._nursery or self._open()
        assert nursery.stdin is not None and nursery.stdout is not None
        changed = {k: v for k, v in self._env.items() if self._usual.get(k) != v}
        nursery.stdin.write(json.dumps(changed).encode() + b"\n")
        self._pid = int(nursery.stdout.readline())
        deadline = time.monotonic() + READY_S
        while not self._healthy():
            if not self.running:
                raise AssertionError(f"the server ended\n{self.tail()}")
            assert time.monotonic() < deadline, f"not ready after {READY_S:g} s\n{self.tail()}"
            time.sleep(0.01)
        return self

    def _open(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.waiting.nursery", str(self.port)],
                cwd=self.directory, env=self._usual, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=output, bufsize=0,
            )  # fmt: skip
        return self._nursery

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does not wait."""
        if self._pid:
            os.kill(self._pid, number)

    def wait(self, timeout: float = STOP_S) -> int:
        """Wait for the end of the life; return its exit code."""
        if not self._pid:
            return 0
        assert self._nursery is not None and self._nursery.stdout is not None
        if not self._ready(timeout):
            raise subprocess.TimeoutExpired("the server", timeout)
        self._pid = 0
        return int(self._nursery.stdout.readline())

    def _ready(self, timeout: float) -> bool:
        assert self._nursery is not None and self._nursery.stdout is not None
        return bool(select.select([self._nursery.stdout], [], [], timeout)[0])

    def kill(self) -> None:
        """End the life, and the nursery with it; the next start has a new one."""
        self.end_life()
        if self._nursery is not None:
            assert self._nursery.stdin is not None and self._nursery.stdout is not None
            self._nursery.stdin.close()
            self._nursery.wait(STOP_S)
            self._nursery.stdout.close()
            self._nursery = None

    def end_life(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._pid:
            if self.running:
                self.signal(signal.SIGKILL)
            self.wait()


def live(port: int) -> None:
    """Be one life."""
    import uvicorn

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    app = import_module(APP).app
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def main(port: int) -> None:
    for name in MODULES:
        import_module(name)
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            os.environ.update(json.loads(line))
            live(port)
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
