"""Every line of the control routes' contract, and every bad input with what it gets."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.surface.wire import Asked, events_of, is_problem, run_of, until_noted, until_status

NOBODY = "0198f000-0000-7000-8000-000000000000"


def test_a_run_can_be_looked_at(client: httpx.Client) -> None:
    run_id = run_of(client.post("/json", json={"text": "look"}))
    run = until_status(client, run_id, "completed")
    assert run["id"] == run_id
    assert run["name"] == "POST /json"
    assert run["version"] == "1"
    assert run["attempts"] in (0, 1)
    assert run["events"] == 2  # the head and one piece of body
    assert run["entries"] >= 4
    assert run["error"] is None
    for name in ("created_at", "updated_at"):
        assert datetime.fromisoformat(run[name]).utcoffset() is not None


def test_a_runs_journal_comes_in_pages(client: httpx.Client) -> None:
    run_id = run_of(client.get("/text", params={"n": 10}))
    run = until_status(client, run_id, "completed")
    whole = client.get(f"/_durable/runs/{run_id}/journal", params={"limit": 500}).json()
    assert whole["next"] is None
    assert [entry["seq"] for entry in whole["entries"]] == list(range(run["entries"]))
    assert whole["entries"][0]["kind"] == "started"
    assert whole["entries"][-1]["kind"] == "completed"
    for entry in whole["entries"]:
        assert set(entry) >= {"seq", "kind", "key", "at", "took_us", "args", "payload", "size"}
        assert datetime.fromisoformat(entry["at"]).utcoffset() is not None
    pages, after = [], None
    while True:
        asked = {"limit": 4} | ({} if after is None else {"after": after})
        page = client.get(f"/_durable/runs/{run_id}/journal", params=asked).json()
        assert len(page["entries"]) <= 4
        pages += page["entries"]
        after = page["next"]
        if after is None:
            break
    assert pages == whole["entries"]


def test_runs_are_listed_newest_first_and_by_status_and_name(client: httpx.Client) -> None:
    made = [run_of(client.get("/status/204")) for _ in range(5)]
    for run_id in made:
        until_status(client, run_id, "completed")
    asked = {"name": "GET /status/{code}", "status": "completed"}
    listed, before = [], None
    while True:
        more = asked | ({} if before is None else {"before": before})
        page = client.get("/_durable/runs", params={**more, "limit": 2}).json()
        listed += page["runs"]
        before = page["next"]
        if before is None:
            break
    ids = [run["id"] for run in listed]
    assert set(made) <= set(ids)
    assert ids == sorted(ids, reverse=True)
    assert {run["name"] for run in listed} == {"GET /status/{code}"}
    assert client.get("/_durable/runs", params={"status": "cancelled"}).json()["runs"] == []


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip"])
def test_behind_a_proxy_nobody_is_local(client: httpx.Client, name: str) -> None:
    answer = client.get("/_durable/runs", headers={name: "127.0.0.1"})
    is_problem(answer, 403, "operators-only")


def test_the_response_route_waits_and_then_answers_as_the_handler_did(
    client: httpx.Client, directory: Path
) -> None:
    accepted = client.post(
        "/json", json={"text": "later"}, params={"hold": "later"},
        headers={"prefer": "respond-async"},
    )  # fmt: skip
    assert accepted.status_code == 202
    run_id = accepted.headers["durable-run-id"]
    assert accepted.headers["location"] == f"/_durable/runs/{run_id}"
    assert accepted.headers["preference-applied"] == "respond-async"
    assert accepted.content == b""
    until_noted(directory, "shout later")
    waiting = client.get(f"/_durable/runs/{run_id}/response")
    assert waiting.status_code == 202
    assert int(waiting.headers["retry-after"]) >= 1
    assert waiting.json()["status"] == "running"
    (directory / "later").touch()
    until_status(client, run_id, "completed")
    for _ in range(2):
        answer = client.get(f"/_durable/runs/{run_id}/response")
        assert answer.status_code == 200
        assert answer.json() == {"answer": "LATER", "run": run_id}
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("code", [204, 201, 404, 503, 304])
def test_the_response_route_gives_every_status_and_header(client: httpx.Client, code: int) -> None:
    first = client.get(f"/status/{code}")
    assert first.status_code == code
    run_id = run_of(first)
    until_status(client, run_id, "completed")
    again = client.get(f"/_durable/runs/{run_id}/response")
    assert again.status_code == code
    assert again.headers["x-own"] == "kept"
    assert again.content == b""


def test_the_response_of_a_stream_is_its_own_bytes(client: httpx.Client) -> None:
    first = client.get("/events/hand")
    answer = client.get(f"/_durable/runs/{run_of(first)}/response")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == re.sub(r"(?m)^id: .*\n", "", first.text)
    assert [event.data for event in events_of(answer.text)] == [f"word {i}" for i in range(5)]


def test_the_response_of_a_failed_run_is_a_problem(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError), client.stream("GET", "/fails/mid") as first:
        run_id = run_of(first)
        first.read()
    run = until_status(client, run_id, "failed")
    assert run["error"] == "RuntimeError: the wheel came off on the way"
    is_problem(client.get(f"/_durable/runs/{run_id}/response"), 500, "run-failed")


def test_delete_is_for_good(client: httpx.Client, directory: Path) -> None:
    run_id = run_of(client.post("/json", json={"text": "delete me"}))
    until_status(client, run_id, "completed")
    answer = client.delete(f"/_durable/runs/{run_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/stream", "/response", "/journal"):
        is_problem(client.get(f"/_durable/runs/{run_id}{path}"), 410, "run-deleted")
    is_problem(client.delete(f"/_durable/runs/{run_id}"), 410, "run-deleted")
    resumed = client.post("/json", headers={"last-event-id": f"{run_id}:1-00000000"})
    is_problem(resumed, 410, "run-deleted")
    is_problem(client.post(f"/_durable/runs/{run_id}/cancel"), 410, "run-deleted")


def test_an_unfinished_run_is_not_deleted(client: httpx.Client, directory: Path) -> None:
    with client.stream("GET", "/events/hand", params={"hold": "undeleted"}) as stream:
        run_id = run_of(stream)
        is_problem(client.delete(f"/_durable/runs/{run_id}"), 409, "run-unfinished")
        (directory / "undeleted").touch()
        assert len(events_of(stream.read().decode())) == 5
    until_status(client, run_id, "completed")
    assert client.delete(f"/_durable/runs/{run_id}").status_code == 204


def test_cancel_ends_a_run_and_keeps_what_was_shown(client: httpx.Client) -> None:
    asked: Asked = {"hold": "never", "at": 2}
    with client.stream("GET", "/events/hand", params=asked) as stream:
        run_id = run_of(stream)
        lines = stream.iter_lines()
        shown = [next(lines) for _ in range(8)]
        answer = client.post(f"/_durable/runs/{run_id}/cancel")
        assert answer.status_code == 202
        assert list(lines) == []  # a clean end: there is nothing to come back for
    until_status(client, run_id, "cancelled")
    again = client.post(f"/_durable/runs/{run_id}/cancel")
    assert (again.status_code, again.json()) == (200, {"status": "cancelled"})
    kept = client.get(f"/_durable/runs/{run_id}/stream", headers={"accept": "text/event-stream"})
    assert kept.text.splitlines()[: len(shown)] == shown
    assert len(events_of(kept.text)) == 2
    is_problem(client.get(f"/_durable/runs/{run_id}/response"), 409, "run-cancelled")


def test_a_run_that_has_ended_is_not_cancelled(client: httpx.Client) -> None:
    run_id = run_of(client.get("/status/200"))
    until_status(client, run_id, "completed")
    is_problem(client.post(f"/_durable/runs/{run_id}/cancel"), 409, "run-ended")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("GET", "/stream"), ("GET", "/response"), ("GET", "/journal"),
        ("POST", "/cancel"), ("DELETE", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("run_id", [NOBODY, "1", "not-a-run", "%00", "%2e%2e", "x" * 500])
def test_an_unknown_run_is_the_same_404(
    client: httpx.Client, method: str, path: str, run_id: str
) -> None:
    unknown = client.request(method, f"/_durable/runs/{NOBODY}{path}")
    answer = client.request(method, f"/_durable/runs/{run_id}{path}")
    assert answer.content == unknown.content
    is_problem(answer, 404, "run-not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/runs", "GET"), ("POST", "/runs", "GET"), ("PATCH", "/runs/{id}", "GET"),
        ("GET", "/runs/{id}/cancel", "POST"), ("POST", "/runs/{id}/stream", "GET"),
        ("POST", "/runs/{id}/response", "GET"), ("DELETE", "/runs/{id}/journal", "GET"),
        ("POST", "/health", "GET"), ("DELETE", "/client.js", "GET"),
    ],
)  # fmt: skip
def test_a_wrong_method_is_a_405(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    run_id = run_of(client.get("/status/200"))
    answer = client.request(method, "/_durable" + path.format(id=run_id))
    is_problem(answer, 405, "method-not-allowed")
    assert allowed in answer.headers["allow"].split(", ")


@pytest.mark.parametrize("path", ["/nothing", "/runs/x/nothing", "/runs/x/stream/y"])
def test_there_is_nothing_elsewhere(client: httpx.Client, path: str) -> None:
    is_problem(client.get(f"/_durable{path}"), 404, "not-found")


def test_a_path_that_only_begins_like_ours_is_the_apps(client: httpx.Client) -> None:
    assert client.get("/_durables").json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": "many"}, {"limit": "1e3"}, {"limit": "9" * 40}, {"status": "asleep"},
        {"limit": "²"}, {"limit": ""}, {"limit": "--1"},
    ],
)  # fmt: skip
def test_a_bad_question_about_runs_is_a_400(client: httpx.Client, asked: dict[str, str]) -> None:
    answer = client.get("/_durable/runs", params=asked)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("before", ["not-a-run", "", "%", "\U0001f600"])
def test_any_place_to_go_on_from_is_answered(client: httpx.Client, before: str) -> None:
    assert client.get("/_durable/runs", params={"before": before}).status_code in (200, 400)


@pytest.mark.parametrize("asked", [{"after": "x"}, {"limit": "x"}, {"after": "-"}])
def test_a_bad_question_about_a_journal_is_a_400(
    client: httpx.Client, asked: dict[str, str]
) -> None:
    run_id = run_of(client.get("/status/200"))
    answer = client.get(f"/_durable/runs/{run_id}/journal", params=asked)
    is_problem(answer, 400, "malformed-number")


def test_health_and_the_browsers_client(client: httpx.Client) -> None:
    health = client.get("/_durable/health").json()
    assert health["status"] == "ok"
    assert 0 <= health["lag_ms"] < 60_000
    script = client.get("/_durable/client.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "export" in script.text
    assert client.head("/_durable/client.js").status_code == 200
    assert client.head("/_durable/health").status_code == 200
