"""Around a durable route everything stays as it was."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from tests.apps.surface import BIG, COOKIE
from tests.support.server import Server
from tests.surface.wire import (
    events_of,
    is_problem,
    noted,
    run_of,
    until,
    until_noted,
    until_status,
)

SSE = {"accept": "text/event-stream"}


def test_other_routes_pass_untouched(client: httpx.Client) -> None:
    answer = client.get("/plain")
    assert answer.json() == {"plain": True}
    assert "durable-run-id" not in answer.headers
    assert "link" not in answer.headers
    assert client.get("/nowhere").status_code == 404
    assert "durable-run-id" not in client.get("/openapi.json").headers


@pytest.mark.parametrize("path", ["/unchanged", "/class", "/plain", "/json"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_head_and_options_are_never_runs(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert "durable-run-id" not in answer.headers
    assert answer.status_code in (200, 405)


def test_a_def_endpoint_with_a_plain_step(client: httpx.Client) -> None:
    answer = client.post("/def", json={"text": "plainly"})
    assert answer.json() == {"answer": "PLAINLY", "run": run_of(answer)}
    assert client.post("/def", json={"text": 1}).status_code == 422


def test_validation_comes_before_the_run(client: httpx.Client) -> None:
    answer = client.post("/json", json={"times": "x"})
    assert answer.status_code == 422
    assert "durable-run-id" not in answer.headers


def test_a_class_based_endpoint_is_durable_method_by_method(client: httpx.Client) -> None:
    answer = client.get("/class")
    run_of(answer)
    assert answer.json() == {"method": "get", "answer": "CLASS"}
    assert "durable-run-id" not in client.delete("/class").headers
    for method in ("GET", "DELETE"):  # by a path pattern: whatever the method
        run_of(client.request(method, "/unchanged"))


def test_a_mounted_app_and_an_included_router(client: httpx.Client, server: Server) -> None:
    answer = client.get("/sub/inside")
    run_id = run_of(answer)
    assert answer.json() == {
        "url": f"{server.url}/sub/inside", "root_path": "/sub",
        "link": f"{server.url}/sub/inside",
    }  # fmt: skip
    assert f"</_durable/runs/{run_id}/stream>" in answer.headers["link"]
    answer = client.get("/v1/api/items/7")
    assert answer.json() == {"item": 7}
    name = until_status(client, run_of(answer), "completed")["name"]
    assert name.endswith("/api/items/{item}")


def test_the_link_of_a_mounted_stream_leads_back(client: httpx.Client) -> None:
    first = client.get("/sub/events")
    link = first.headers["link"].partition(">")[0].lstrip("<")
    events = events_of(first.text)
    assert len(events) == 3
    answer = client.get(link, headers={"last-event-id": events[0].id})
    assert events_of(answer.text) == events[1:]
    again = client.get("/sub/events", headers={"last-event-id": events[1].id})
    assert events_of(again.text) == events[2:]


def test_an_upload(client: httpx.Client) -> None:
    data = bytes(range(256)) * 8000  # two mebibytes: FastAPI spools it to disk
    answer = client.post("/upload", data={"title": "tëst"}, files={"file": ("naïve.bin", data)})
    run_of(answer)
    assert answer.json() == {
        "title": "tëst", "name": "naïve.bin", "size": len(data), "tail": "fdfeff"
    }  # fmt: skip


def test_a_body_over_the_limit_is_a_413(client: httpx.Client) -> None:
    fits, too_large = b"x" * (4 << 20), b"x" * ((4 << 20) + 1)
    assert len(client.post("/echo", content=fits).content) == len(fits)
    is_problem(client.post("/echo", content=too_large), 413, "body-too-large")

    def in_pieces() -> object:
        for _ in range(80):
            yield b"x" * 65536

    is_problem(client.post("/echo", content=in_pieces()), 413, "body-too-large")  # type: ignore[arg-type]
    answer = client.post("/upload", data={"title": "t"}, files={"file": ("f", too_large)})
    is_problem(answer, 413, "body-too-large")


def test_a_declared_length_over_the_limit_is_refused_unread(server: Server) -> None:
    head = f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_within_its_request_leaves_no_run(
    server: Server, client: httpx.Client
) -> None:
    before = client.get("/_durable/runs", params={"limit": 500}).json()["runs"]
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode())
    assert client.post("/echo", content=b"next").content == b"next"
    after = client.get("/_durable/runs", params={"limit": 500}).json()["runs"]
    assert len(after) == len(before) + 1


def test_behind_a_root_path(serve: Callable[..., Server]) -> None:
    server = serve(options=("--root-path", "/behind/a/proxy"))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for path in ("/events/hand", "/sub/events", "/unchanged", "/v1/api/items/3"):
            answer = client.get(path)
            run_id = run_of(answer)
            link = f"</behind/a/proxy/_durable/runs/{run_id}/stream>"
            assert answer.headers["link"].startswith(link)
            until_status(client, run_id, "completed")
            again = client.get(f"/_durable/runs/{run_id}/response")
            assert again.status_code == 200
        accepted = client.post("/json", json={"text": "x"}, headers={"prefer": "respond-async"})
        assert accepted.headers["location"].startswith("/behind/a/proxy/_durable/runs/")
        inside = client.get("/sub/inside").json()
        assert inside["root_path"] == "/behind/a/proxy/sub"
        assert inside["link"] == f"{server.url}/behind/a/proxy/sub/inside"


def test_a_file(client: httpx.Client) -> None:
    answer = client.get("/file")
    run_id = run_of(answer)
    assert answer.content == BIG
    assert answer.headers["content-length"] == str(len(BIG))
    assert answer.headers["content-disposition"] == 'attachment; filename="big.bin"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"]
    until_status(client, run_id, "completed")
    again = client.get(f"/_durable/runs/{run_id}/response")
    assert hashlib.sha256(again.content).digest() == hashlib.sha256(BIG).digest()
    part = client.get("/file", headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, BIG[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(BIG)}"


@pytest.mark.parametrize("code", [200, 201, 204, 304, 404, 500])
def test_an_empty_answer_keeps_its_status_and_headers(client: httpx.Client, code: int) -> None:
    answer = client.get(f"/status/{code}")
    run_of(answer)
    assert (answer.status_code, answer.content) == (code, b"")
    assert answer.headers["x-own"] == "kept"


def test_a_cookie_is_for_the_first_connection_only(client: httpx.Client) -> None:
    with httpx.Client(base_url=str(client.base_url), cookies={"sid": "mine"}) as mine:
        answer = mine.get("/cookie", params={"token": "t", "page": "2"})
    run_id = run_of(answer)
    assert answer.json() == {"cookies": ["sid"], "query": ["page", "token"]}
    assert answer.headers["set-cookie"] == COOKIE
    until_status(client, run_id, "completed")
    for path in ("response", "stream"):
        again = client.get(f"/_durable/runs/{run_id}/{path}")
        assert again.json() == answer.json()
        assert "set-cookie" not in again.headers


def test_background_tasks_are_part_of_the_run(client: httpx.Client, directory: Path) -> None:
    answer = client.post("/background", params={"hold": "bg"})  # answers before they are done
    assert answer.json() == {"accepted": True}
    run_id = run_of(answer)
    until_noted(directory, "shout background")
    assert client.get(f"/_durable/runs/{run_id}").json()["status"] == "running"
    assert client.get(f"/_durable/runs/{run_id}/response").json() == {"accepted": True}
    control = client.get(
        f"/_durable/runs/{run_id}/stream", headers={**SSE, "durable-events": "1"}
    )  # fmt: skip
    assert events_of(control.text)[-1].data == '{"status":"running","error":null}'
    (directory / "bg").touch()
    until_status(client, run_id, "completed")
    assert noted(directory, "background done") == 1


def test_yield_dependencies_stay_open_until_the_run_ends(
    client: httpx.Client, directory: Path
) -> None:
    with client.stream("GET", "/depends", params={"hold": "dep"}) as stream:
        run_id = run_of(stream)
        assert "data: resource" in next(stream.iter_text())
    assert noted(directory, "resource open") == noted(directory, "plain resource open") == 1
    assert client.get(f"/_durable/runs/{run_id}").json()["status"] == "running"
    assert noted(directory, "resource closed") == noted(directory, "plain resource closed") == 0
    (directory / "dep").touch()  # the reader is gone
    until_status(client, run_id, "completed")
    notes = (directory / "notes").read_text().splitlines()
    used = notes.index("stream uses its resource")
    assert used < notes.index("plain resource closed") < notes.index("resource closed")


def test_exceptions_go_to_their_handlers(client: httpx.Client) -> None:
    answer = client.get("/fails/http")
    assert (answer.status_code, answer.json()) == (409, {"detail": "no"})
    assert answer.headers["x-why"] == "because"
    assert until_status(client, run_of(answer), "completed")["error"] is None
    answer = client.get("/fails/handled")
    assert (answer.status_code, answer.json()) == (418, {"trouble": "in the handler"})
    assert run_of(answer)
    answer = client.get("/fails/crash", headers={"connection": "close"})
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_a_failure_in_mid_stream_cuts_the_connection(client: httpx.Client) -> None:
    shown = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("GET", "/fails/mid") as stream,
    ):
        run_id = run_of(stream)
        for chunk in stream.iter_raw():
            shown += chunk
    assert [event.data for event in events_of(shown.decode())] == ["one"]
    until_status(client, run_id, "failed")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(f"/_durable/runs/{run_id}/stream", headers=SSE)
    told = client.get(f"/_durable/runs/{run_id}/stream", headers={**SSE, "durable-events": "1"})
    assert events_of(told.text)[-1].data == '{"status":"failed","error":"RuntimeError"}'


@pytest.mark.parametrize(
    ("how", "step_name", "place"),
    [("unencodable", "weigh", "$.weight"), ("unencodable-item", "list", "$")],
)
def test_a_result_that_cannot_be_written_fails_its_run_alone(
    client: httpx.Client, directory: Path, how: str, step_name: str, place: str
) -> None:
    hold = f"beside-{how}"
    with client.stream("GET", "/events/hand", params={"hold": hold, "at": 1}) as neighbour:
        if how == "unencodable":
            assert client.get(f"/fails/{how}", headers={"connection": "close"}).status_code == 500
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(f"/fails/{how}", headers={"connection": "close"})
        (directory / hold).touch()
        assert len(events_of(neighbour.read().decode())) == 5
        until_status(client, run_of(neighbour), "completed")
    failed = client.get("/_durable/runs", params={"status": "failed", "limit": 1}).json()["runs"][0]
    assert f"step {step_name}" in failed["error"]
    assert f"at {place} " in failed["error"]


def test_test_client_with_and_without_a_lifespan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from fastapi import FastAPI

    from durable_endpoints import DurableMiddleware, durable, step

    app = FastAPI()

    @app.get("/")
    @durable
    async def root() -> dict[str, str]:
        return {"answer": await step.run("think", asyncio.sleep, 0, "42")}

    app.add_middleware(DurableMiddleware, store="memory:")
    client = TestClient(app)
    for _ in range(3):  # each request on an event loop of its own
        assert client.get("/").json() == {"answer": "42"}
    with TestClient(app) as client:
        answer = client.get("/")
        run_id = answer.headers["durable-run-id"]
        path = f"/_durable/runs/{run_id}"
        until("completed", lambda: client.get(path).json()["status"] == "completed")
        assert client.get(f"/_durable/runs/{run_id}/response").json() == {"answer": "42"}


def test_websockets_and_lifespan_state_in_test_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from tests.apps.surface import app

    with TestClient(app) as client:
        with client.websocket_connect("/ws") as socket:
            socket.send_text("hello")
            assert socket.receive_text() == "HELLO"
        answer = client.get("/greeting")
        assert answer.json() == {"greeting": "hello from the lifespan", "app": "FastAPI"}
    assert noted(tmp_path, "lifespan stop") == 1
