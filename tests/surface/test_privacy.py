"""Whose a run is (I18), and what is never stored (I19)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

from durable_endpoints import DurableMiddleware
from tests.support.server import Server
from tests.surface.wire import events_of, is_problem, run_of, until_status

ANN, BOB = {"x-user": "ann"}, {"x-user": "bob"}
NOBODYS = "0198f000-0000-7000-8000-000000000000"


def test_another_principals_run_is_as_unknown_as_none(serve: Callable[..., Server]) -> None:
    server = serve(SURFACE_PRINCIPAL="1")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        first = client.get("/events/hand", headers=ANN)
        run_id = run_of(first)
        cursor = events_of(first.text)[1].id
        path = f"/_durable/runs/{run_id}"
        until_status(client, run_id, "completed", headers=ANN)
        for foreign in (BOB, {}):
            for method, route in (
                ("GET", ""), ("GET", "/stream"), ("GET", "/response"), ("GET", "/journal"),
                ("POST", "/cancel"), ("DELETE", ""),
            ):  # fmt: skip
                theirs = client.request(method, path + route, headers=foreign)
                nobodys = client.request(
                    method, f"/_durable/runs/{NOBODYS}{route}", headers=foreign
                )  # fmt: skip
                is_problem(theirs, 404, "run-not-found")
                assert theirs.content == nobodys.content
                assert without_date(theirs) == without_date(nobodys)
            resumed = client.get("/events/hand", headers={**foreign, "last-event-id": cursor})
            is_problem(resumed, 404, "run-not-found")
        mine = client.get("/events/hand", headers={**ANN, "last-event-id": cursor})
        assert events_of(mine.text) == events_of(first.text)[2:]
        assert client.delete(path, headers=ANN).status_code == 204
        is_problem(client.get(path, headers=ANN), 410, "run-deleted")
        is_problem(client.get(path, headers=BOB), 404, "run-not-found")


def without_date(answer: httpx.Response) -> list[tuple[str, str]]:
    return [pair for pair in answer.headers.multi_items() if pair[0] != "date"]


def test_the_same_key_of_two_principals_is_two_runs(serve: Callable[..., Server]) -> None:
    server = serve(SURFACE_PRINCIPAL="1")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answers = [
            client.post("/json", json={"text": text}, headers={**who, "idempotency-key": "k"})
            for who, text in ((ANN, "hers"), (BOB, "his"), (ANN, "hers"), ({}, "nobody's"))
        ]
        runs = [run_of(answer) for answer in answers]
        assert runs[0] == runs[2]
        assert len(set(runs)) == 3
        assert [answer.json()["answer"] for answer in answers] == [
            "HERS", "HIS", "HERS", "NOBODY'S",
        ]  # fmt: skip


SECRETS = {
    "authorization": "Bearer plant-authorization-1",
    "proxy-authorization": "Basic plant-proxy-2",
    "cookie": "sid=plant-cookie-3",
    "x-api-key": "plant-api-key-4",
    "x-auth-token": "plant-auth-token-5",
    "x-client-secret": "plant-secret-6",
}
QUERY = {
    "token": "plant-query-7", "access_token": "plant-query-8", "api_key": "plant-query-9",
    "password": "plant-query-10", "to%6ben": "plant-query-11",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/cookie", "/events/hand", "/unchanged"])
def test_no_secret_is_ever_written(client: httpx.Client, directory: Path, path: str) -> None:
    query = "&".join(f"{name}={value}" for name, value in QUERY.items())
    answer = client.get(f"{path}?page=planted-and-kept&{query}", headers=SECRETS)
    until_status(client, run_of(answer), "completed")
    stored = b"".join(file.read_bytes() for file in directory.glob("durable.db*"))
    assert b"planted-and-kept" in stored
    for planted in (*SECRETS.values(), *QUERY.values()):
        assert planted.rpartition(" ")[2].encode() not in stored, planted
    assert b"set-cookie-secret-5150" not in stored
    journal = client.get(f"/_durable/runs/{run_of(answer)}/journal", params={"limit": 500})
    assert "plant-" not in journal.text


def test_no_secret_argument_of_a_step_is_ever_written(
    client: httpx.Client, directory: Path
) -> None:
    answer = client.get("/sign-in")
    assert answer.json() == "ann"
    until_status(client, run_of(answer), "completed")
    stored = b"".join(file.read_bytes() for file in directory.glob("durable.db*"))
    for planted in (b"plant-nested-12", b"plant-positional-13"):
        assert planted not in stored


def test_a_principal_may_be_found_out_asynchronously() -> None:
    async def who(connection: HTTPConnection) -> str | None:
        await asyncio.sleep(0)
        return connection.headers.get("x-user")

    async def main() -> None:
        middleware = DurableMiddleware(
            PlainTextResponse("hello"), store="memory:", routes=["*"], principal=who
        )
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            run_id = run_of(await client.get("/", headers=ANN))
            path = f"/_durable/runs/{run_id}"
            assert (await client.get(path, headers=ANN)).status_code == 200
            is_problem(await client.get(path, headers=BOB), 404, "run-not-found")
            is_problem(await client.get(path), 404, "run-not-found")
        await middleware.engine.close()

    asyncio.run(main())


def test_an_operator_hook_opens_and_closes_the_list() -> None:
    async def main() -> None:
        middleware = DurableMiddleware(
            PlainTextResponse("hello"), store="memory:", routes=["*"],
            operator=lambda connection: connection.headers.get("x-user") == "ann",
        )  # fmt: skip
        transport = httpx.ASGITransport(app=middleware, client=("10.1.1.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            run_id = run_of(await client.get("/"))
            listed = await client.get("/_durable/runs", headers=ANN)
            assert [run["id"] for run in listed.json()["runs"]] == [run_id]
            for headers in (BOB, {}, {**BOB, "x-forwarded-for": "127.0.0.1"}):
                answer = await client.get("/_durable/runs", headers=headers)
                is_problem(answer, 403, "operators-only")
        await middleware.engine.close()

    asyncio.run(main())


def test_an_errors_text_is_for_operators(client: httpx.Client) -> None:
    assert client.get("/fails/crash", headers={"connection": "close"}).status_code == 500
    run = client.get("/_durable/runs", params={"status": "failed", "limit": 1}).json()["runs"][0]
    assert run["error"] == "RuntimeError: the wheel came off"
    proxied = client.get(f"/_durable/runs/{run['id']}", headers={"x-forwarded-for": "10.0.0.9"})
    assert proxied.json()["error"] == "RuntimeError"
    answer = client.get(
        f"/_durable/runs/{run['id']}/response", headers={"x-forwarded-for": "10.0.0.9"}
    )  # fmt: skip
    assert "wheel" not in answer.text
    told = client.get(
        f"/_durable/runs/{run['id']}/stream",
        headers={"durable-events": "1", "accept": "text/event-stream"},
    )
    assert "wheel" not in told.text
