"""`Idempotency-Key` and `Prefer: respond-async`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server
from tests.surface.wire import (
    Asked,
    events_of,
    is_problem,
    noted,
    run_of,
    until_noted,
    until_status,
)

# uvicorn closes the connection of a request whose app has raised, a moment after its answer.
CLOSE = {"connection": "close"}


def post(client: httpx.Client, key: str, text: str, **asked: str) -> httpx.Response:
    return client.post(
        "/json", json={"text": text}, params=asked, headers={"idempotency-key": key}
    )  # fmt: skip


@pytest.mark.parametrize("again", ["same", '"same"'])
def test_the_same_request_is_the_same_run(
    client: httpx.Client, directory: Path, again: str
) -> None:
    first = post(client, "same", "once")
    second = post(client, again, "once")
    assert run_of(second) == run_of(first)
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert second.headers["content-type"] == first.headers["content-type"]
    assert noted(directory, "shout once") == 1


def test_another_body_or_query_is_a_422(client: httpx.Client, directory: Path) -> None:
    first = post(client, "reused", "one")
    is_problem(post(client, "reused", "two"), 422, "idempotency-key-reused")
    is_problem(post(client, "reused", "one", hold=""), 422, "idempotency-key-reused")
    assert noted(directory, "shout two") == 0
    assert run_of(post(client, "reused", "one")) == run_of(first)


def test_a_key_belongs_to_its_route(client: httpx.Client) -> None:
    first = post(client, "route", "a")
    other = client.post("/def", json={"text": "a"}, headers={"idempotency-key": "route"})
    assert run_of(other) != run_of(first)


def test_without_a_key_every_request_is_a_run(client: httpx.Client) -> None:
    runs = {run_of(client.post("/json", json={"text": "again"})) for _ in range(3)}
    assert len(runs) == 3


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "tab\tbed"])
def test_a_malformed_key_is_a_400(client: httpx.Client, key: str) -> None:
    is_problem(post(client, key, "bad"), 400, "malformed-idempotency-key")


@pytest.mark.parametrize("key", ["x" * 255, '"', "ümlaut", "a:b/c?d", '"half'])
def test_any_other_key_is_good(client: httpx.Client, key: str) -> None:
    headers = {b"idempotency-key": key.encode("latin-1")}
    first = client.post("/json", json={"text": "key"}, headers=headers)
    second = client.post("/json", json={"text": "key"}, headers=headers)
    assert run_of(first) == run_of(second)


def test_a_failed_run_is_not_done_again(client: httpx.Client, directory: Path) -> None:
    headers = {"idempotency-key": "fails", **CLOSE}
    assert client.get("/fails/crash", headers=headers).status_code == 500
    again = client.get("/fails/crash", headers=headers)
    is_problem(again, 500, "run-failed")
    assert (
        client.get(f"/_durable/runs/{again.headers['durable-run-id']}").json()["status"] == "failed"
    )


def test_duplicates_at_once_are_one_run(server: Server, directory: Path) -> None:
    """Thirty clients at once, most of them before the first is durable."""

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client:
            requests = [
                client.post(
                    "/json", json={"text": "crowd"}, params={"hold": "crowd"},
                    headers={"idempotency-key": "crowd"},
                )
                for _ in range(30)
            ]  # fmt: skip
            answers = asyncio.gather(*requests)
            await asyncio.to_thread(until_noted, directory, "shout crowd")
            (directory / "crowd").touch()
            return list(await answers)

    answers = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({run_of(answer) for answer in answers}) == 1
    assert noted(directory, "shout crowd") == 1


def test_a_duplicate_of_a_running_stream_gets_it_from_the_start(
    client: httpx.Client, directory: Path
) -> None:
    asked: Asked = {"n": 4, "hold": "dup", "at": 2}
    headers = {"idempotency-key": "stream"}
    with (
        client.stream("POST", "/events/starlette", params=asked, headers=headers) as first,
        client.stream("POST", "/events/starlette", params=asked, headers=headers) as second,
    ):
        assert run_of(second) == run_of(first)
        (directory / "dup").touch()
        one, two = first.read(), second.read()
    assert one == two
    assert len(events_of(one.decode())) == 4


def test_a_key_outlives_its_server(server: Server, client: httpx.Client, directory: Path) -> None:
    first = post(client, "outlives", "lasting")
    until_status(client, run_of(first), "completed")
    server.restart()
    with httpx.Client(base_url=server.url, timeout=30) as after:
        again = post(after, "outlives", "lasting")
        assert run_of(again) == run_of(first)
        assert again.content == first.content
        is_problem(post(after, "outlives", "other"), 422, "idempotency-key-reused")
    assert noted(directory, "shout lasting") == 1


@pytest.mark.parametrize("prefer", ["respond-async", "wait=10, respond-async", "Respond-Async"])
def test_an_accepted_run_is_fetched_later(
    client: httpx.Client, directory: Path, prefer: str
) -> None:
    accepted = client.post("/json", json={"text": "async"}, headers={"prefer": prefer})
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    until_status(client, location.rpartition("/")[2], "completed")
    assert client.get(f"{location}/response").json()["answer"] == "ASYNC"


def test_an_accepted_stream_is_followed_from_its_start(client: httpx.Client) -> None:
    accepted = client.get("/events/hand", headers={"prefer": "respond-async"})
    assert accepted.status_code == 202
    stream = client.get(
        f"{accepted.headers['location']}/stream", headers={"accept": "text/event-stream"}
    )  # fmt: skip
    assert len(events_of(stream.text)) == 5


def test_an_accepted_run_that_fails_says_so(client: httpx.Client) -> None:
    accepted = client.get("/fails/crash", headers={"prefer": "respond-async", **CLOSE})
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    run = until_status(client, location.rpartition("/")[2], "failed")
    assert run["error"] == "RuntimeError: the wheel came off"
    is_problem(client.get(f"{location}/response"), 500, "run-failed")


def test_respond_async_and_a_key_together(client: httpx.Client, directory: Path) -> None:
    headers = {"prefer": "respond-async", "idempotency-key": "both"}
    first = client.post("/json", json={"text": "both"}, headers=headers)
    second = client.post("/json", json={"text": "both"}, headers=headers)
    assert first.headers["durable-run-id"] == second.headers["durable-run-id"]
    assert second.status_code in (200, 202)
    until_noted(directory, "shout both")
    until_status(client, first.headers["durable-run-id"], "completed")
    assert noted(directory, "shout both") == 1
