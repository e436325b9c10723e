"""Readers that take nothing cost little, and are let go; others get the whole run (I23)."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server

PIECES, KIB = 48, 128
READERS = 16
STALL_S = 1.0
PATIENCE_S = 30.0
# One read of the store and what waits to be written, twice over: the allocator keeps some.
BYTES_A_READER = 4 << 20


def stalled(server: Server, path: str) -> socket.socket:
    """Return a connection that has asked, and reads nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    reader.connect(("127.0.0.1", server.port))
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader


def readers(server: Server) -> int:
    """Return how many follow a run, as the server counts them."""
    said = httpx.get(f"{server.url}/_durable/metrics").text
    found = re.search(r"^durable_readers (\d+)", said, re.MULTILINE)
    assert found is not None, said
    return int(found.group(1))


def resident(server: Server) -> int:
    """Return the bytes of memory that the server has."""
    said = Path(f"/proc/{server.pid}/status").read_text()
    found = re.search(r"VmRSS:\s*(\d+) kB", said)
    assert found is not None
    return int(found.group(1)) << 10


def until(holds: Callable[[], bool]) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_i23_readers_that_take_nothing_are_let_go(tmp_path: Path) -> None:
    env = {"STORE": f"sqlite:///{tmp_path}/durable.db", "STALL_S": str(STALL_S)}
    with Server("tests.apps.bulky:app", tmp_path, env=env) as server:
        whole = httpx.post(f"{server.url}/bulk?n={PIECES}&kib={KIB}", timeout=PATIENCE_S)
        path = f"/_durable/runs/{whole.headers['durable-run-id']}/response"
        assert httpx.get(server.url + path).content == whole.content
        before = resident(server)
        some = [stalled(server, path) for _ in range(READERS)]
        until(lambda: readers(server) == READERS)
        most = resident(server)
        until(lambda: readers(server) == 0)
        assert most - before < READERS * BYTES_A_READER
        for reader in some:
            got = 0
            try:
                while data := reader.recv(1 << 16):
                    got += len(data)
            except ConnectionResetError:
                pass
            reader.close()
            assert got < len(whole.content) / 2  # cut, and not at an end that could be believed
        assert httpx.get(server.url + path).content == whole.content
