"""Runs that wait, for the tests that answer them."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import httpx

from tests.surface.wire import until, until_status

NOBODY = "0198f000-0000-7000-8000-000000000000"
# Behind a proxy nobody is local, hence nobody is an operator.
PROXIED = {"x-forwarded-for": "192.0.2.7"}
FORM = {"accept": "text/html,application/xhtml+xml"}


def accepted(client: httpx.Client, path: str, **more: Any) -> str:
    """Begin a run whose answer nobody waits for; return its id."""
    headers = {"prefer": "respond-async", **more.pop("headers", {})}
    answer = client.post(path, headers=headers, **more)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["durable-run-id"])


def waiting(client: httpx.Client, path: str, **more: Any) -> str:
    """Begin a run and wait until it durably waits for something, in memory or out of it."""
    run_id = accepted(client, path, **more)
    headers = more.get("headers")
    until(f"{path} waits", lambda: "wait" in kinds(client, run_id, headers))
    return run_id


def entries(
    client: httpx.Client, run_id: str, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return a run's journal."""
    path = f"/_durable/runs/{run_id}/journal"
    answer = client.get(path, params={"limit": 500}, headers=headers)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["entries"])


def kinds(client: httpx.Client, run_id: str, headers: dict[str, str] | None = None) -> list[str]:
    return [entry["kind"] for entry in entries(client, run_id, headers)]


def send(client: httpx.Client, run_id: str, name: str = "go", **more: Any) -> httpx.Response:
    """Send a signal."""
    return client.post(f"/_durable/runs/{run_id}/signals/{name}", **more)


def outcome(answer: httpx.Response, status: int = 202) -> str:
    """Return what became of a signal."""
    assert answer.status_code == status, answer.text
    return str(answer.json()["outcome"])


def response_of(client: httpx.Client, run_id: str) -> Any:
    """Return what the handler answered, once it has."""
    until_status(client, run_id, "completed")
    return client.get(f"/_durable/runs/{run_id}/response").json()


def link_of(client: httpx.Client, run_id: str) -> str:
    """Return the link of an open approval, from the list for operators."""
    (link,) = [
        one["link"]
        for one in client.get("/_durable/approvals").json()["approvals"]
        if one["run_id"] == run_id
    ]
    return str(link)


def asked(client: httpx.Client, **question: Any) -> tuple[str, str]:
    """Begin a run that asks; return its id and the link."""
    run_id = waiting(client, "/approval", json=question)
    return run_id, link_of(client, run_id)


def text_of(page: httpx.Response) -> str:
    """Return what a page shows, without its markup."""
    body = page.text.partition("<body>")[2]
    return unescape(re.sub(r"<[^>]*>", " ", body))
