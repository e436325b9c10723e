"""What a server says of its runs when asked directly: the other side of every comparison."""

from __future__ import annotations

from typing import Any

import httpx

from durable_endpoints.client import SSEDecoder
from tests.support.server import Server

WAIT_S = 30.0
# Control events without a place in the log.
_NOT_LOGGED = {"durable.run", "durable.done"}


def runs(server: Server) -> list[dict[str, Any]]:
    """Return all runs, newest first."""
    return list(httpx.get(f"{server.url}/_durable/runs", timeout=WAIT_S).json()["runs"])


def the_run(server: Server) -> str:
    """Return the id of the one run there is."""
    (run,) = runs(server)
    return str(run["id"])


def final_log(
    server: Server, run_id: str, *, control: bool = True
) -> list[tuple[str, str, str | None]]:
    """Return an ended run's events: type, data, id; with `control`, its rewinds too."""
    answer = httpx.get(
        f"{server.url}/_durable/runs/{run_id}/stream",
        headers={"Accept": "text/event-stream", **({"Durable-Events": "1"} if control else {})},
        timeout=WAIT_S,
    )
    assert answer.status_code == 200, answer.text
    messages = SSEDecoder().feed(answer.content)
    return [(m.event, m.data, m.id) for m in messages if m.event not in _NOT_LOGGED]
