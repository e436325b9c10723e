"""What effects act on: a server outside that remembers every call, whatever becomes of the caller.

`python -m tests.crash.waiting.sink PORT FILE`. Each call is a line of FILE, on the disk before it
is answered. `?fails=2`: the first two calls of a key are answered 503. The same key gets the same
receipt. `GET /known/KEY`: 200 with the receipt, or 404.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import parse_qs, urlparse

from tests.support.server import ROOT, free_port

ANSWER_S: Final = 0.005  # long enough for the caller to die in the midst of it
_START_S: Final = 20.0
ATTEMPTS: Final = 4  # of what the sink refuses


class Call(NamedTuple):
    """One call as the sink has it."""

    what: str
    key: str
    payload: str
    status: int


def receipt(key: str) -> str:
    return sha256(key.encode()).hexdigest()[:12]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: ClassVar[Counter[str]] = Counter()
    file = -1

    def do_POST(self) -> None:
        url = urlparse(self.path)
        size = int(self.headers["content-length"])
        payload = self.rfile.read(size).decode()
        if len(payload.encode()) < size:
            return  # the caller died in the midst of it: it never asked for anything
        key = self.headers["idempotency-key"]
        self.counts[key] += 1
        fails = int(parse_qs(url.query).get("fails", ["0"])[0])
        status = 503 if self.counts[key] <= fails else 200
        call = Call(url.path[1:], key, payload, status)
        os.write(self.file, json.dumps(call).encode() + b"\n")
        os.fdatasync(self.file)
        time.sleep(ANSWER_S)
        self._answer(status, {"receipt": receipt(key), "count": self.counts[key]})

    def do_GET(self) -> None:
        key = self.path.rpartition("/")[2]
        known = self.counts[key] > 0 or key == "health"
        self._answer(200 if known else 404, {"receipt": receipt(key), "count": self.counts[key]})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Sink(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Callers die: nothing to say about it."""


def read_calls(path: Path, after: int = 0) -> list[Call]:
    """Return the calls behind byte `after`; a line that is not whole was never answered."""
    data = path.read_bytes()[after:]
    whole = data[: data.rfind(b"\n") + 1]
    return [Call(*json.loads(line)) for line in whole.splitlines()]


@contextmanager
def sink(path: Path) -> Iterator[str]:
    """Run a sink as a process of its own; yields its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.crash.waiting.sink", str(port), str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_S
        while not _healthy(url):
            assert process.poll() is None, "the sink ended"
            assert time.monotonic() < deadline, "the sink does not start"
            time.sleep(0.01)
        yield url
    finally:
        process.kill()
        process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/known/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    port, path = int(sys.argv[1]), sys.argv[2]
    Handler.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    Sink(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
