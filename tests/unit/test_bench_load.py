"""The bench's client: it asks as often as it says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.load import BadAnswer, measure, post

ANSWER = b"{}"


@contextmanager
def counting() -> Iterator[tuple[int, list[str]]]:
    """Yield the port of a server, and what it has been asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            serving.join()


def right(status: int, body: bytes) -> None:
    if (status, body) != (200, ANSWER):
        raise BadAnswer(f"{status} {body!r}")


@pytest.mark.parametrize(("lanes", "at_least"), [(1, 1), (1, 7), (10, 10), (4, 10), (10, 3)])
def test_it_asks_so_many_times_and_no_more(lanes: int, at_least: int) -> None:
    with counting() as (port, asked):
        samples = measure(port, post("/", b"x"), right, lanes=lanes, seconds=0, at_least=at_least)
    assert len(asked) == len(samples.total) == max(lanes, at_least)


def test_a_wrong_answer_ends_it() -> None:
    def wrong(status: int, body: bytes) -> None:
        raise BadAnswer(f"{status} is not what was wanted")

    with counting() as (port, _), pytest.raises(BadAnswer, match="not what was wanted"):
        measure(port, post("/", b"x"), wrong, lanes=2, seconds=5)
