"""Other middlewares above and below ours, in every order; each stack on a server of its own."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.apps.surface import BIG
from tests.support.server import Server
from tests.surface.wire import events_of, run_of, until_noted, until_status

SSE = {"accept": "text/event-stream"}
# From the inside out, as `add_middleware` is called.
STACKS = ("base,durable", "durable,base", "gzip,durable", "durable,gzip", "base,gzip,durable,cors",
          "cors,durable,gzip,base")  # fmt: skip


@pytest.fixture(scope="module", params=STACKS)
def stacked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("stack")
    env = {"SURFACE_STACK": request.param}
    with Server("tests.apps.surface:app", directory, env=env) as server:
        yield server
    assert "Traceback" not in server.log.read_text(), server.tail()


@pytest.fixture
def client(stacked: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stacked.url, timeout=30) as client:
        yield client


def test_json(client: httpx.Client, stacked: Server) -> None:
    answer = client.post("/json", json={"text": "stacked"})
    run_id = run_of(answer)
    assert answer.json() == {"answer": "STACKED", "run": run_id}
    until_status(client, run_id, "completed")
    assert client.get(f"/_durable/runs/{run_id}/response").json() == answer.json()
    assert client.get("/plain").json() == {"plain": True}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("kind", ["native", "starlette", "hand"])
def test_a_stream_and_its_rest(client: httpx.Client, kind: str, encoding: str) -> None:
    headers = {"accept-encoding": encoding}
    first = client.get(f"/events/{kind}", headers=headers)
    run_id = run_of(first)
    assert "content-encoding" not in first.headers  # GZipMiddleware leaves event streams alone
    events = events_of(first.text)
    assert [event.id.partition(":")[0] for event in events] == [run_id] * 5
    rest = client.get(f"/events/{kind}", headers={**headers, "last-event-id": events[1].id})
    assert events_of(rest.text) == events[2:]
    whole = client.get(f"/_durable/runs/{run_id}/stream", headers={**headers, **SSE})
    assert events_of(whole.text) == events


def test_a_stream_is_not_held_up(client: httpx.Client, stacked: Server) -> None:
    for kind in ("native", "starlette", "hand"):
        hold = f"live-{kind}"
        with client.stream("GET", f"/events/{kind}", params={"hold": hold, "at": 1}) as stream:
            chunks = stream.iter_text()
            shown = next(chunks)
            assert len(events_of(shown)) == 1
            (stacked.directory / hold).touch()
            assert len(events_of(shown + "".join(chunks))) == 5


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_bodies_of_all_kinds(client: httpx.Client, encoding: str) -> None:
    headers = {"accept-encoding": encoding}
    for path, body in (
        ("/file", BIG),
        ("/text?n=50", b"".join(b"word %d\n" % number for number in range(50))),
        ("/bulk?chunks=3", b"\0" * 65536 + b"\1" * 65536 + b"\2" * 65536),
    ):
        first = client.get(path, headers=headers)
        run_id = run_of(first)
        assert first.content == body
        until_status(client, run_id, "completed")
        again = client.get(f"/_durable/runs/{run_id}/response", headers=headers)
        assert again.content == body
        raw = client.get(f"/_durable/runs/{run_id}/stream", headers=headers)
        assert raw.content == body


def test_a_compressed_body_is_compressed_once(client: httpx.Client) -> None:
    with client.stream("GET", "/text?n=50", headers={"accept-encoding": "gzip"}) as answer:
        data = b"".join(answer.iter_raw())
        if answer.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        assert data.startswith(b"word 0\n")
        assert answer.headers.get_list("content-encoding") in ([], ["gzip"])


def test_cookies_uploads_and_failures(client: httpx.Client) -> None:
    assert "set-cookie" in client.get("/cookie").headers
    size = 300_000
    answer = client.post("/upload", data={"title": "t"}, files={"file": ("f", b"x" * size)})
    assert answer.json()["size"] == size
    assert client.get("/fails/http").status_code == 409
    assert client.get("/fails/handled").json() == {"trouble": "in the handler"}


def test_background_tasks(client: httpx.Client, stacked: Server) -> None:
    answer = client.post("/background")
    assert answer.json() == {"accepted": True}
    until_status(client, run_of(answer), "completed")
    until_noted(stacked.directory, "background done")


def test_a_reader_that_leaves_does_not_end_its_run(client: httpx.Client, stacked: Server) -> None:
    for kind in ("native", "starlette", "hand"):
        name = f"leaves-{kind}"
        with socket.create_connection(("127.0.0.1", stacked.port)) as connection:
            query = f"/events/{kind}?n=200&hold={name}&at=1"
            connection.sendall(f"GET {query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.settimeout(20)
            seen = b""
            while b"word 0" not in seen:
                seen += connection.recv(4096)
        run_id = seen.lower().partition(b"durable-run-id: ")[2][:36].decode()
        (stacked.directory / name).touch()
        until_status(client, run_id, "completed")
        whole = client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
        assert len(events_of(whole.text)) == 200


def test_a_kill_in_the_middle(serve: Callable[..., Server]) -> None:
    """A recovered run goes through the middlewares below ours again."""
    server = serve(SURFACE_STACK="base,gzip,durable,base,gzip")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        accepted = client.get(
            "/json", params={"text": "again " * 100, "hold": "kill"},
            headers={"prefer": "respond-async", "accept-encoding": "gzip"},
        )  # fmt: skip
        assert accepted.status_code == 202
        until_noted(server.directory, f"shout {'again ' * 100}")
    server.kill()
    (server.directory / "kill").touch()
    server.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        run_id = accepted.headers["durable-run-id"]
        until_status(client, run_id, "completed")
        answer = client.get(f"/_durable/runs/{run_id}/response")
        assert answer.json() == {"answer": "AGAIN " * 100}
        assert answer.headers["x-marked"] == "yes"
        assert answer.headers["content-encoding"] == "gzip"
