"""The refund that waits for a person, and the trip that is undone: through kill -9 and restarts."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.client import Message
from tests.examples.example_processes import (
    EXAMPLES,
    WAIT_S,
    Process,
    Serve,
    messages,
    rest_of,
    until,
)
from tests.support.server import free_port

pytestmark = pytest.mark.crash

REFUND = {"order": "A-17", "amount": 240, "reason": "It came <b>broken</b>."}


def run_of(server: Process, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/_durable/runs/{run_id}", timeout=WAIT_S).json()
    return found


def until_status(server: Process, run_id: str, status: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        run = run_of(server, run_id)
        return run if run["status"] == status else None

    run: dict[str, Any] = until(reached, f"run {run_id} {status}", detail=server.log.read_text)
    return run


def begin(server: Process, path: str, body: dict[str, Any]) -> str:
    answer = httpx.post(
        server.url + path, json=body, headers={"prefer": "respond-async"}, timeout=WAIT_S
    )
    assert answer.status_code == 202, answer.text
    return str(answer.headers["durable-run-id"])


def texts(said: list[Message]) -> list[str]:
    return [json.loads(message.data)["text"] for message in said]


def link(folder: Path) -> str:
    """The path of the one link that was sent."""
    (path,) = re.findall(r"http://127\.0\.0\.1:8000(\S+)", (folder / "outbox.txt").read_text())
    return str(path)


def payments(folder: Path) -> list[str]:
    if not (folder / "payments.db").exists():
        return []
    with closing(sqlite3.connect(folder / "payments.db")) as database:
        return [row[0] for row in database.execute("select what from payments")]


# --- the refund


def test_a_refund_waits_for_a_person_over_restarts(serve: Serve, tmp_path: Path) -> None:
    server = serve("approval:app")
    with messages(f"{server.url}/refunds", "POST", json=REFUND) as (response, stream):
        run_id = response.headers["durable-run-id"]
        seen = [next(stream), next(stream)]
        run = until_status(server, run_id, "suspended")
        assert run["waiting"][0]["kind"] == "approval"
        server.kill()  # days pass
    server.start()
    asked = httpx.get(server.url + link(tmp_path), headers={"accept": "text/html"}, timeout=WAIT_S)
    assert "Refund 240.00 for order A-17?" in asked.text
    assert "&lt;b&gt;broken" in asked.text
    assert payments(tmp_path) == []
    server.stop()  # a deployment
    server.start()
    decision = {"approved": True, "by": "Ann"}
    assert httpx.post(server.url + link(tmp_path), json=decision, timeout=WAIT_S).status_code == 202
    until_status(server, run_id, "completed")
    seen += rest_of(server, run_id, seen[-1].id)
    said = texts(seen)
    assert said[0] == "Looked up the customer of A-17."
    assert said[2].startswith("Ann approved on ")
    assert said[3].startswith("Paid 240.00 back; the receipt is ")
    assert len(said) == 4
    assert payments(tmp_path) == ["A-17: 240.00"]
    again = httpx.post(server.url + link(tmp_path), json={"approved": False}, timeout=WAIT_S)
    assert again.status_code == 409
    assert again.json()["answer"]["by"] == "Ann"


def test_a_refund_that_is_declined_or_forgotten_is_not_paid(serve: Serve, tmp_path: Path) -> None:
    server = serve("approval:app", REFUND_DAYS=str(1 / 86_400))  # a second
    forgotten = begin(server, "/refunds", REFUND)
    until_status(server, forgotten, "completed")
    assert texts(rest_of(server, forgotten, None))[-1].startswith("Nobody has decided in time.")
    (tmp_path / "outbox.txt").unlink()
    server.stop()
    server = serve("approval:app", REFUND_DAYS="1")  # Bob must not be the slower one
    declined = begin(server, "/refunds", REFUND)
    until_status(server, declined, "suspended")
    form = {"decision": "decline", "by": "Bob", "comment": "Not broken."}
    answer = httpx.post(server.url + link(tmp_path), data=form, timeout=WAIT_S)
    assert answer.status_code == 200
    until_status(server, declined, "completed")
    assert texts(rest_of(server, declined, None))[-1] == "Bob declined. Not broken."
    assert payments(tmp_path) == []
    with messages(f"{server.url}/refunds", "POST", json={**REFUND, "amount": 12}) as (_, stream):
        assert texts(list(stream))[-1].startswith("Paid 12.00 back")  # a small one needs nobody
    assert payments(tmp_path) == ["A-17: 12.00"]
    assert "client.js" in httpx.get(server.url, timeout=WAIT_S).text


# --- the trip


@pytest.fixture
def travel(tmp_path: Path) -> Iterator[Process]:
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "travel.py"), "--port", str(port)]
    process = Process(
        command, port, tmp_path / "travel.log", cwd=tmp_path, env={}, ready="/bookings"
    ).start()
    yield process
    process.stop()


def booked(travel: Process) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{travel.url}/bookings", timeout=WAIT_S).json()
    return found


def faults(travel: Process, **statuses: list[int]) -> None:
    ordered = {name.replace("_", " "): found for name, found in statuses.items()}
    httpx.post(f"{travel.url}/faults", json=ordered, timeout=WAIT_S).raise_for_status()


def test_a_trip_is_booked_once_over_a_kill(serve: Serve, travel: Process) -> None:
    faults(travel, hotel=[503, 429, 503])
    server = serve("saga:app", TRAVEL_URL=travel.url)
    run_id = begin(server, "/trips", {"city": "Lisbon"})
    until(lambda: booked(travel)["counts"].get("POST hotel", 0) >= 2, "two tries for the hotel")
    server.kill()  # while it waits for the next one, or tries
    server.start()
    until_status(server, run_id, "completed")
    found = booked(travel)
    assert list(found["bookings"]) == [f"{one}/{run_id}" for one in ("flight", "hotel", "car")]
    assert found["counts"]["POST flight"] == 1
    assert found["counts"]["POST hotel"] in (4, 5)  # the kill may have cut one
    said = texts(rest_of(server, run_id, None))
    assert said[-1] == "Have a good time in Lisbon!"
    assert "The hotel is booked: hotel-2." in said


def test_a_trip_that_fails_is_undone_over_a_kill(serve: Serve, travel: Process) -> None:
    faults(travel, car=[409], cancel_hotel=[503] * 100)
    server = serve("saga:app", TRAVEL_URL=travel.url)
    run_id = begin(server, "/trips", {"city": "Porto"})
    # The hotel does not let go at once: it is tried again, and the server dies meanwhile.
    until(lambda: booked(travel)["counts"].get("DELETE hotel", 0) >= 1, "a try to undo")
    server.kill()
    faults(travel, cancel_hotel=[])  # not before: nothing else was under way then
    server.start()
    run = until_status(server, run_id, "failed")
    assert run["error"].startswith("HTTPStatusError: Client error '409 Conflict'")
    assert "not undone" not in run["error"]
    found = booked(travel)
    assert found["bookings"] == {}
    assert found["counts"]["POST car"] == 1
    assert found["counts"]["DELETE flight"] == 1
    assert "DELETE car" not in found["counts"]
    deletes = [call for call in found["calls"] if call.startswith("DELETE")]
    assert deletes[-1] == "DELETE flight"  # the last booking first
    url = f"{server.url}/_durable/runs/{run_id}/stream"
    with messages(url, headers={"durable-events": "1"}) as (_, stream):
        events = list(stream)
    assert json.loads(events[-2].data)["failed"] == "car"
    assert json.loads(events[-1].data) == {"status": "failed", "error": "HTTPStatusError"}
