"""Many readers of one run: what they get a second, and what they cost the one who writes."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.apps import work
from bench.contenders import Contender
from bench.load import BadAnswer, measure
from bench.phases import serving
from bench.server import Server

TOKENS, PACE_MS = 500, 2
_WANTED = [work.token(n).encode() for n in range(TOKENS)]


def _check(status: int, body: bytes) -> None:
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    found = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    if status != 200 or found != _WANTED:
        raise BadAnswer(f"a reader got status {status} and {len(found)} of {TOKENS} tokens")


class _Writer:
    """The first request: its run id as soon as the head is there, then its body."""

    def __init__(self, server: Server, pace_ms: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        body = json.dumps({"tokens": TOKENS, "pace_ms": pace_ms})
        self._began = time.perf_counter()
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/chat", body=body, headers=headers)
        self._response = self._connection.getresponse()
        self.run_id = str(self._response.headers["durable-run-id"])

    def finish(self) -> float:
        """Read to the end; return the seconds since the request."""
        _check(self._response.status, self._response.read())
        taken = time.perf_counter() - self._began
        self._connection.close()
        return taken


def _read_all(server: Server, run_id: str, readers: int) -> float:
    """Read the run with `readers` connections at once; return the seconds it took."""
    lines = (
        f"GET /_durable/runs/{run_id}/stream HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: text/event-stream",
    )
    request = "\r\n".join(lines).encode() + b"\r\n\r\n"
    samples = measure(server.port, request, _check, lanes=readers, seconds=0, at_least=readers)
    return samples.seconds


def figures(contender: Contender, directory: Path, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the figures for each number of readers; every reader's tokens are checked."""
    finished, late, live = [], [], []
    with serving(contender, directory) as server, ThreadPoolExecutor(1) as pool:
        alone = statistics.median(_Writer(server, PACE_MS).finish() for _ in range(3))
        for count in counts:
            writer = _Writer(server, 0)
            writer.finish()
            seconds = _read_all(server, writer.run_id, count)
            finished.append({"at": count, "value": count * TOKENS / seconds})
            writer = _Writer(server, PACE_MS)
            first = pool.submit(writer.finish)
            began = time.perf_counter()
            _read_all(server, writer.run_id, count)
            live.append({"at": count, "value": (time.perf_counter() - began) * 1000})
            late.append({"at": count, "value": first.result() / alone})
    paced = f"a run of {TOKENS} tokens at {PACE_MS} ms"
    return [
        {"what": "n readers of a finished run: events/s in all", "unit": "/s", "points": finished},
        {"what": f"n readers of {paced}: all done after", "unit": "ms", "points": live},
        {"what": f"… {paced}: the first reader's time, of alone", "unit": "x", "points": late},
    ]
