"""Real server processes for the examples' tests, and what reads their streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from durable_endpoints.client import Message, SSEDecoder
from tests.support.server import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
START_S = WAIT_S = 30.0
WORD_S = 0.01


class Process:
    """A server process on a port of its own that can be killed and started again."""

    def __init__(
        self,
        command: list[str],
        port: int,
        log: Path,
        *,
        cwd: Path,
        env: dict[str, str],
        ready: str,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = command
        self._cwd = cwd
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Process:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._cwd, env=self._env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        until(self._answers, f"{self._command} to answer", detail=self.log.read_text)
        return self

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"no end after SIGTERM:\n{self.log.read_text()}") from None

    def wait(self, timeout_s: float) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"it ended at once:\n{self.log.read_text()}")
        try:
            return httpx.get(self.url + self._ready, timeout=5).status_code < 500
        except httpx.TransportError:
            return False


class Model(Process):
    """The scripted model as a server; it stands still where a test wants it to."""

    def __init__(self, folder: Path, delay_s: float = WORD_S) -> None:
        port, self._gate = free_port(), folder / "gate"
        command = [
            sys.executable, str(Path(__file__).parent / "gated_model.py"), "--port", str(port),
            "--delay", str(delay_s), "--gate", str(self._gate),
        ]  # fmt: skip
        super().__init__(command, port, folder / "model.log", cwd=folder, env={}, ready="/stats")

    def stop_before(self, word: int) -> None:
        """Have every answer stand still before its word of this number, until it may go on."""
        self._gate.write_text(str(word))

    def go_on(self) -> None:
        """Have every answer be said to its end."""
        self._gate.unlink(missing_ok=True)


def until(
    condition: Callable[[], Any], what: str, *, timeout_s: float = START_S,
    detail: Callable[[], str] = str,
) -> Any:  # fmt: skip
    """Wait until `condition` is true, and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}\n{detail()}")


Serve = Callable[..., Process]


@contextmanager
def messages(
    url: str, method: str = "GET", **request: Any
) -> Iterator[tuple[httpx.Response, Iterator[Message]]]:
    """A response, and the SSE messages of its body as they come."""

    def read(response: httpx.Response) -> Iterator[Message]:
        decoder = SSEDecoder()
        for chunk in response.iter_bytes():
            yield from decoder.feed(chunk)

    with (
        httpx.Client(timeout=30, trust_env=False) as client,
        client.stream(method, url, **request) as response,
    ):
        yield response, read(response)


def offset(message: Message) -> int:
    assert message.id is not None
    return int(message.id.rpartition(":")[2].partition("-")[0])


def rest_of(server: Process, run_id: str, last_id: str | None) -> list[Message]:
    """The events after a cursor, reconnecting as a client does until the body ends cleanly."""
    found: list[Message] = []

    def attempt() -> bool:
        headers = {"Last-Event-ID": cursor} if (cursor := _cursor(found, last_id)) else {}
        url = f"{server.url}/_durable/runs/{run_id}/stream"
        try:
            with messages(url, headers=headers) as (response, stream):
                assert response.status_code in (200, 204), response.read()
                found.extend(stream)
                return True
        except httpx.TransportError:
            return False

    until(attempt, "the stream's clean end", timeout_s=60, detail=server.log.read_text)
    return found


def _cursor(found: list[Message], last_id: str | None) -> str | None:
    return found[-1].id if found else last_id
