"""Begins runs of the test app and waits for their states."""

from __future__ import annotations

from typing import Any

import httpx

from tests.surface.wire import until_status

ASYNC = {"prefer": "respond-async"}


def begun(client: httpx.Client, path: str, **more: Any) -> str:
    """Begin a run that stays; return its id."""
    # A connection of its own: the server closes it when the run fails behind the answer.
    url = client.base_url.join(path)
    answer = httpx.post(url, headers={**ASYNC, **more.pop("headers", {})}, timeout=30, **more)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["durable-run-id"])


def ended(client: httpx.Client, path: str, **more: Any) -> str:
    """Begin a run, wait until it has ended, return its id."""
    headers = {k: v for k, v in more.get("headers", {}).items() if k == "x-user"}
    run_id = begun(client, path, **more)
    until_status(client, run_id, "completed", "failed", headers=headers)
    return run_id


def waiting(client: httpx.Client, path: str) -> str:
    """Begin a run that comes to wait; return its id."""
    run_id = begun(client, path)
    until_status(client, run_id, "suspended")
    return run_id


def token_of(client: httpx.Client, path: str = "/_durable/") -> str:
    """Return the token that forms need; the client has the cookie then."""
    client.get(path).raise_for_status()
    return client.cookies["durable_console"]


def send(
    client: httpx.Client, run_id: str, action: str, *, headers: dict[str, str] | None = None,
    token: str | None = None, **fields: str,
) -> httpx.Response:  # fmt: skip
    """Send an action's form as the page would."""
    fields["token"] = token_of(client) if token is None else token
    origin = {"origin": str(client.base_url).rstrip("/")}
    path = f"/_durable/console/runs/{run_id}/actions/{action}"
    return client.post(path, data=fields, headers={**origin, **(headers or {})})
