"""Readers cost the handler nothing: two of them, a thousand, a slow one, one that is gone."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx

from durable_endpoints.limits import READERS_PER_RUN_MAX
from tests.support.server import Server
from tests.surface.wire import (
    Asked,
    events_of,
    run_of,
    until,
    until_noted,
    until_status,
)


def ask(server: Server, path: str, *headers: str) -> bytes:
    """Return the bytes of a GET request."""
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def connect(server: Server, path: str, *headers: str, buffer: int = 4096) -> socket.socket:
    """Send a GET request from a socket that takes in very little by itself."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(20)
    connection.sendall(ask(server, path, *headers))
    return connection


def test_two_tabs_see_the_same_bytes(client: httpx.Client, directory: Path) -> None:
    asked: Asked = {"n": 20, "hold": "tabs", "at": 10}
    with client.stream("GET", "/events/native", params=asked) as first:
        run_id = run_of(first)
        path = f"/_durable/runs/{run_id}/stream"
        with client.stream("GET", path, headers={"accept": "text/event-stream"}) as second:
            (directory / "tabs").touch()
            one, two = first.read(), second.read()
    assert one == two
    assert len(events_of(one.decode())) == 20


def test_a_reader_that_stops_reading_does_not_slow_the_run(
    server: Server, client: httpx.Client, directory: Path
) -> None:
    """32 MiB: far more than sockets and servers buffer."""
    connection = connect(server, "/bulk?chunks=512")
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(256)
    run_id = next(
        line.partition(b": ")[2].decode()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"durable-run-id")
    )
    until_noted(directory, "bulk made")
    until_status(client, run_id, "completed")
    with client.stream("GET", f"/_durable/runs/{run_id}/stream") as second:
        total = sum(len(chunk) for chunk in second.iter_raw())
    assert total == 512 * 65536
    size = len(head)
    while chunk := connection.recv(1 << 20):  # the slow one comes to its end too
        size += len(chunk)
        if chunk.endswith(b"0\r\n\r\n"):
            break
    assert size > 512 * 65536
    connection.close()


def test_a_run_without_any_reader_goes_on(
    server: Server, client: httpx.Client, directory: Path
) -> None:
    connection = connect(server, "/events/starlette?n=3&hold=absent&at=1")
    assert b"durable-run-id" in connection.recv(4096).lower()
    connection.close()
    newest = client.get("/_durable/runs", params={"limit": 1}).json()["runs"][0]
    assert newest["status"] == "running"
    (directory / "absent").touch()
    until_status(client, newest["id"], "completed")
    answer = client.get(
        f"/_durable/runs/{newest['id']}/stream", headers={"accept": "text/event-stream"}
    )  # fmt: skip
    assert [event.data for event in events_of(answer.text)] == ["word 0", "word 1", "word 2"]


def test_a_client_that_leaves_before_its_answer_has_a_run_all_the_same(
    server: Server, client: httpx.Client, directory: Path
) -> None:
    connection = connect(server, "/json?text=early&hold=early")
    until_noted(directory, "shout early")
    connection.close()
    (directory / "early").touch()

    def left() -> httpx.Response | None:
        """The step begins before the run is durable: its run may not be listed yet."""
        runs = client.get("/_durable/runs", params={"limit": 1}).json()["runs"]
        if not runs or runs[0]["name"] != "GET /json":
            return None
        return client.get(f"/_durable/runs/{runs[0]['id']}/response")

    until("the run is there", left)
    answer = until("it ends", lambda: (found := left()) and found.status_code == 200 and found)
    assert answer.json() == {"answer": "EARLY"}


def test_a_thousand_readers_of_one_run_and_not_one_too_many(
    server: Server, client: httpx.Client, directory: Path
) -> None:
    asked: Asked = {"n": 30, "hold": "crowd", "at": 5}
    with client.stream("GET", "/events/hand", params=asked) as first:
        run_id = run_of(first)
        path = f"/_durable/runs/{run_id}/stream"

        async def reader(gate: asyncio.Semaphore, begun: list[None]) -> bytes:
            async with gate:
                incoming, outgoing = await asyncio.open_connection("127.0.0.1", server.port)
                outgoing.write(ask(server, path, "Accept: text/event-stream", "Connection: close"))
            try:
                seen = await incoming.readuntil(b"word 4")
                begun.append(None)
                seen += await incoming.read()
            finally:
                outgoing.close()
                await outgoing.wait_closed()
            return seen.partition(b"\r\n\r\n")[2]

        async def main() -> list[bytes]:
            gate, begun = asyncio.Semaphore(100), list[None]()
            readers = [
                asyncio.ensure_future(reader(gate, begun)) for _ in range(READERS_PER_RUN_MAX - 1)
            ]
            while len(begun) < len(readers):
                assert not any(task.done() for task in readers)
                await asyncio.sleep(0.05)
            too_many = await asyncio.to_thread(
                client.get, path, headers={"accept": "text/event-stream"}
            )  # fmt: skip
            # A stock EventSource would never come back after a 503.
            assert (too_many.status_code, too_many.text[:6]) == (200, "retry:")
            assert too_many.headers["content-type"].startswith("text/event-stream")
            (directory / "crowd").touch()
            return await asyncio.gather(*readers)

        bodies = asyncio.run(main())
        mine = without_beats(first.read())
    assert len(bodies) == READERS_PER_RUN_MAX - 1
    for body in {without_beats(dechunked(body)) for body in bodies}:
        assert len(events_of(body.decode())) == 30
        assert body == mine


def without_beats(body: bytes) -> bytes:
    """Return a body without heartbeats: each reader's silence began at another moment."""
    return body.replace(b": hb\n", b"")


def dechunked(body: bytes) -> bytes:
    """Return a chunked body without its chunk headers."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


def test_a_silent_stream_has_heartbeats(
    server: Server, client: httpx.Client, directory: Path
) -> None:
    """One comment line with one newline, after 15 seconds of silence; never journalled."""
    with client.stream("GET", "/events/hand", params={"n": 2, "hold": "quiet", "at": 1}) as stream:
        run_id = run_of(stream)
        chunks = stream.iter_text()
        shown = next(chunks)
        beat = next(chunks)
        assert beat == ": hb\n"
        (directory / "quiet").touch()
        shown += beat + "".join(chunks)
    assert [event.data for event in events_of(shown)] == ["word 0", "word 1"]
    kept = client.get(f"/_durable/runs/{run_id}/stream", headers={"accept": "text/event-stream"})
    assert ": hb" not in kept.text


def test_a_head_does_not_wait_for_the_first_piece(client: httpx.Client, directory: Path) -> None:
    with client.stream("GET", "/text", params={"n": 1, "hold": "slow-start"}) as stream:
        assert run_of(stream)  # the headers are here, and nothing of the body yet
        (directory / "slow-start").touch()
        assert stream.read() == b"word 0\n"


def test_a_reader_before_the_head_is_shown_that_somebody_is_here(
    client: httpx.Client, directory: Path
) -> None:
    headers = {"prefer": "respond-async"}
    accepted = client.get("/json", params={"text": "x", "hold": "headless"}, headers=headers)
    path = f"{accepted.headers['location']}/stream"
    with client.stream("GET", path, headers={"accept": "text/event-stream"}) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        (directory / "headless").touch()
        assert [event.data for event in events_of(stream.read().decode())] == ['{"answer":"X"}']
    until("no connection is left over", lambda: client.get("/_durable/health").status_code == 200)
