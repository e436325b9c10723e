"""Signals and retries: every status code, for suspended runs; for others: `test_in_memory`."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.limits import SIGNAL_BYTES_MAX
from tests.support.server import Server
from tests.surface.waiters import (
    NOBODY,
    PROXIED,
    accepted,
    entries,
    kinds,
    outcome,
    response_of,
    send,
    waiting,
)
from tests.surface.wire import is_problem, noted, until_noted, until_status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("waiting")) as server:
        yield server


# --- signals


def test_a_signal_answers_the_wait_for_it(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    receipt = send(client, run_id, json={"ok": [1, None, "ü"]})
    assert outcome(receipt) == "taken"
    assert response_of(client, run_id) == {"got": {"ok": [1, None, "ü"]}}
    signal = entries(client, run_id)[receipt.json()["seq"]]
    assert (signal["kind"], signal["key"]) == ("signal", "go")


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b"", None), (b" \n", None), (b"null", None), (b"0", 0), (b'"text"', "text"),
        (b'{"a": 1, "a": 2}', {"a": 2}), (b"[1e3, -0.5]", [1000.0, -0.5]),
        (b"18446744073709551615", 18446744073709551615), (b'"\\u0000\\u2028"', "\0\u2028"),
    ],
)  # fmt: skip
def test_data_comes_as_it_was_sent(client: httpx.Client, body: bytes, got: Any) -> None:
    run_id = waiting(client, "/json")
    assert outcome(send(client, run_id, content=body)) == "taken"
    assert response_of(client, run_id) == {"got": got}


def test_early_signals_are_kept_in_order(client: httpx.Client, directory: Path) -> None:
    run_id = accepted(client, "/busy", params={"hold": "early"})
    assert outcome(send(client, run_id, json=1)) == "kept"
    assert outcome(send(client, run_id, "other", json=2)) == "kept"
    assert outcome(send(client, run_id, json=3)) == "kept"
    (directory / "early").touch()
    assert response_of(client, run_id) == {"got": [1, 3]}


def test_a_late_signal_is_told_that_the_run_has_ended(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    send(client, run_id, json=1)
    until_status(client, run_id, "completed")
    problem = is_problem(send(client, run_id, json=2), 409, "run-ended")
    assert "completed" in problem["detail"]


@pytest.mark.parametrize("header", ["idempotency-key", "webhook-id"])
def test_a_signal_sent_again_is_known(client: httpx.Client, header: str) -> None:
    run_id = waiting(client, "/json", params={"then": "end"})
    first = send(client, run_id, json=1, headers={header: "a-1"})
    assert outcome(first) == "taken"
    quoted = '"a-1"' if header == "idempotency-key" else "a-1"
    for _ in range(2):
        again = send(client, run_id, json=1, headers={header: quoted})
        assert outcome(again, 200) == "known"
        assert again.json()["seq"] == first.json()["seq"]
    assert outcome(send(client, run_id, "end", headers={header: "a-1"})) == "taken"
    assert response_of(client, run_id) == {"got": 1}
    late = send(client, run_id, json=1, headers={header: "a-1"})
    assert outcome(late, 200) == "known"
    assert kinds(client, run_id).count("signal") == 2


def test_twenty_at_once_with_one_key_are_one_signal(server: Server, client: httpx.Client) -> None:
    run_id = waiting(client, "/busy", params={"hold": ""})

    def post(_: int) -> httpx.Response:
        url = f"{server.url}/_durable/runs/{run_id}/signals/go"
        return httpx.post(url, json=1, headers={"idempotency-key": "once"}, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
    assert kinds(client, run_id).count("signal") == 1
    assert outcome(send(client, run_id, json=2)) == "taken"
    assert response_of(client, run_id) == {"got": [1, 2]}


def test_many_at_once_are_all_delivered(server: Server, client: httpx.Client) -> None:
    run_id = waiting(client, "/stream", params={"waits": 20})
    url = f"{server.url}/_durable/runs/{run_id}/signals/go"
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: httpx.post(url, json=n, timeout=30), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    until_status(client, run_id, "completed")
    body = client.get(f"/_durable/runs/{run_id}/response").text
    got = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    assert sorted(map(int, got[1:-1])) == list(range(20))


@pytest.mark.parametrize("run_id", [NOBODY, "1", "%00", "%2e%2e", "x" * 500, NOBODY.upper()])
@pytest.mark.parametrize("route", ["signals/go", "retry"])
def test_an_unknown_run_is_the_same_404(client: httpx.Client, route: str, run_id: str) -> None:
    unknown = client.post(f"/_durable/runs/{NOBODY}/{route}")
    answer = client.post(f"/_durable/runs/{run_id}/{route}")
    is_problem(answer, 404, "run-not-found")
    assert answer.content == unknown.content


def test_a_deleted_run_is_gone(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    send(client, run_id, headers={"idempotency-key": "k"})
    until_status(client, run_id, "completed")
    assert client.delete(f"/_durable/runs/{run_id}").status_code == 204
    is_problem(send(client, run_id, headers={"idempotency-key": "k"}), 410, "run-deleted")
    is_problem(client.post(f"/_durable/runs/{run_id}/retry"), 410, "run-deleted")


@pytest.mark.parametrize(
    "data", [{"value": "many"}, {}, [1], None, "5", {"value": 1.5}, {"value": 1, "currency": None}]
)
def test_data_of_another_type_is_refused(client: httpx.Client, data: Any) -> None:
    run_id = waiting(client, "/typed")
    is_problem(send(client, run_id, "amount", json=data), 422, "signal-refused")
    assert "signal" not in kinds(client, run_id)
    assert outcome(send(client, run_id, "amount", json={"value": 7})) == "taken"
    assert response_of(client, run_id) == {"value": 7, "currency": "EUR"}


def test_a_signal_has_a_largest_size(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    too_large = b'"' + b"x" * SIGNAL_BYTES_MAX + b'"'
    is_problem(send(client, run_id, content=too_large), 413, "body-too-large")
    pieces = (too_large[at : at + 65536] for at in range(0, len(too_large), 65536))
    is_problem(send(client, run_id, content=pieces), 413, "body-too-large")
    largest = "x" * (SIGNAL_BYTES_MAX - 2)
    assert outcome(send(client, run_id, content=f'"{largest}"')) == "taken"
    assert response_of(client, run_id) == {"got": largest}


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"{'a': 1}", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b"Infinity", b"{} {}",
        b"[" * 100_000, b'"\\ud800"', b'"\xed\xa0\x80"', b"a=1", b'"\x01"',
    ],
)  # fmt: skip
def test_what_is_no_json_is_a_400(client: httpx.Client, body: bytes) -> None:
    run_id = waiting(client, "/json")
    is_problem(send(client, run_id, content=body), 400, "malformed-json")
    assert outcome(send(client, run_id)) == "taken"


@pytest.mark.parametrize("body", [b"9" * 100_000, b"1e999", b"[" * 500 + b"]" * 500])
def test_odd_numbers_and_depths_are_never_a_500(client: httpx.Client, body: bytes) -> None:
    run_id = waiting(client, "/json")
    answer = send(client, run_id, content=body)
    assert answer.status_code in (202, 400, 422), answer.text


@pytest.mark.parametrize("name", ["%00", "a%0Ab", "%E2%80%AE", "x" * 201, "%ff"])
def test_a_malformed_name_is_a_400(client: httpx.Client, name: str) -> None:
    run_id = waiting(client, "/json")
    answer = send(client, run_id, name)
    assert answer.status_code in (400, 202) if name == "%ff" else answer.status_code == 400
    if answer.status_code == 400:
        is_problem(answer, 400, "malformed-name")


@pytest.mark.parametrize("name", ["", "a%2Fb", "a/b"])
def test_a_name_with_a_slash_is_no_address(client: httpx.Client, name: str) -> None:
    is_problem(send(client, waiting(client, "/json"), name), 404, "not-found")


@pytest.mark.parametrize("name", ["grüße an alle", "x" * 200, "a.b:c-d", "'; drop table waits --"])
def test_a_name_may_be_any_words(client: httpx.Client, name: str) -> None:
    run_id = waiting(client, "/json", params={"name": name})
    assert outcome(send(client, run_id, name, json=1)) == "taken"
    assert response_of(client, run_id) == {"got": 1}


@pytest.mark.parametrize(
    ("header", "kind"),
    [("idempotency-key", "malformed-idempotency-key"), ("webhook-id", "malformed-webhook-id")],
)
@pytest.mark.parametrize("value", ["", "k" * 256, "k" * 10_000])
def test_a_malformed_key_is_a_400(client: httpx.Client, header: str, kind: str, value: str) -> None:
    run_id = waiting(client, "/json")
    is_problem(send(client, run_id, headers={header: value}), 400, kind)
    assert "signal" not in kinds(client, run_id)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/runs/{}/signals/go", "/runs/{}/retry", "/events/go"])
def test_a_wrong_method_is_a_405(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, "/_durable" + path.format(NOBODY))
    is_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("then", ["", "end"])
def test_a_wait_for_one_answer_gets_one(client: httpx.Client, then: str) -> None:
    run_id = waiting(client, "/json", params={"once": True, "then": then})
    assert outcome(send(client, run_id, json={"ok": True})) == "taken"
    if not then:
        until_status(client, run_id, "completed")
    problem = is_problem(send(client, run_id, json={"ok": False}), 409, "already-answered")
    assert problem["answer"]["data"] == {"ok": True}
    assert problem["answer"]["by"] is None
    assert problem["answer"]["at"].endswith("+00:00")


def test_a_wait_that_timed_out_is_not_answered(client: httpx.Client) -> None:
    run_id = waiting(client, "/json", params={"timeout": 0.2})
    assert response_of(client, run_id) == {"got": "timeout go"}
    is_problem(send(client, run_id, json=1), 409, "run-ended")


def test_a_run_signals_another_one(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    told = client.post("/tells", params={"run_id": run_id, "name": "go"})
    assert told.json() == {"told": True}
    assert response_of(client, run_id) == {"got": {"from": "a run"}}
    late = {"run_id": run_id, "name": "go"}
    assert client.post("/tells", params=late, headers={"connection": "close"}).status_code == 500
    asked = {"name": "POST /tells", "status": "failed"}
    (failed,) = client.get("/_durable/runs", params=asked).json()["runs"]
    assert failed["error"] == f"RunEnded: run {run_id} is completed: it takes no signals"


def test_too_many_signals_that_nobody_takes_are_refused(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    for _ in range(1000):
        assert outcome(send(client, run_id, "unread")) == "kept"
    refused = send(client, run_id, "unread")
    is_problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert outcome(send(client, run_id, json=1)) == "taken"


# --- what a plain signal does not do


def test_a_plain_signal_does_not_answer_a_person(client: httpx.Client) -> None:
    """Who holds a run id, the run's own agent for one, cannot approve with it."""
    run_id = waiting(client, "/approval", json={"then": "refund", "notify": False})
    plain = send(client, run_id, "refund", json={"approved": True}, headers=PROXIED)
    assert outcome(plain) == "kept"
    assert "received" not in kinds(client, run_id)
    operator = send(client, run_id, "refund", json={"approved": False, "comment": "no"})
    assert outcome(operator) == "taken"
    decided = response_of(client, run_id)  # the plain signal answered the plain wait that followed
    assert (decided["approved"], decided["comment"], decided["by"]) == (False, "no", None)


@pytest.mark.parametrize("data", [None, {}, {"approved": "yes"}, {"approved": 1}, [True]])
def test_an_operators_word_on_an_approval_is_checked(client: httpx.Client, data: Any) -> None:
    run_id = waiting(client, "/approval", json={"notify": False})
    is_problem(send(client, run_id, "refund", json=data), 422, "signal-refused")


def test_a_plain_signal_does_not_decide_on_a_step(client: httpx.Client, directory: Path) -> None:
    claim = f"plain-{NOBODY[-4:]}"
    run_id = waiting(client, "/escalates", params={"claim": claim})
    answer = {"action": "result", "result": "just"}
    assert outcome(send(client, run_id, "judge", json=answer, headers=PROXIED)) == "kept"
    assert "received" not in kinds(client, run_id)
    is_problem(send(client, run_id, "judge", json={"action": "x"}), 422, "signal-refused")
    assert outcome(send(client, run_id, "judge", json={"action": "retry"})) == "taken"
    until_noted(directory, f"judge {claim}", times=2)
    assert outcome(send(client, run_id, "judge", json=answer)) in ("taken", "kept")
    assert response_of(client, run_id) == {"verdict": "just"}


# --- retries


def test_a_dead_run_is_retried_from_the_failed_step(client: httpx.Client, directory: Path) -> None:
    run_id = accepted(client, "/gives-up", params={"what": "one"})
    dead = until_status(client, run_id, "dead")
    assert dead["error"] == "ConnectionError: the upstream is away"
    assert noted(directory, "fetch one") == 2
    is_problem(send(client, run_id), 409, "run-ended")
    is_problem(client.get(f"/_durable/runs/{run_id}/response"), 500, "run-dead")
    retried = client.post(f"/_durable/runs/{run_id}/retry")
    assert (retried.status_code, retried.json()["id"]) == (202, run_id)
    assert retried.json()["status"] in ("running", "dead")
    until_noted(directory, "fetch one", times=4)
    until_status(client, run_id, "dead")
    (directory / "mended-one").touch()
    assert client.post(f"/_durable/runs/{run_id}/retry").status_code == 202
    assert response_of(client, run_id) == {"fetched": "one"}
    assert noted(directory, "first one") == 1
    is_problem(client.post(f"/_durable/runs/{run_id}/retry"), 409, "not-dead")


def test_only_dead_runs_are_retried(client: httpx.Client) -> None:
    run_id = waiting(client, "/json")
    is_problem(client.post(f"/_durable/runs/{run_id}/retry"), 409, "not-dead")
    assert client.post(f"/_durable/runs/{run_id}/cancel").status_code == 202
    until_status(client, run_id, "cancelled")
    is_problem(client.post(f"/_durable/runs/{run_id}/retry"), 409, "not-dead")


def test_a_dead_run_is_dropped_by_a_cancel(client: httpx.Client) -> None:
    run_id = accepted(client, "/gives-up", params={"what": "dropped"})
    until_status(client, run_id, "dead")
    dropped = client.post(f"/_durable/runs/{run_id}/cancel")
    assert (dropped.status_code, dropped.json()["status"]) == (202, "cancelled")
    is_problem(client.post(f"/_durable/runs/{run_id}/retry"), 409, "not-dead")


def test_all_dead_runs_of_a_name_are_retried_by_operators(
    client: httpx.Client, directory: Path
) -> None:
    made = [accepted(client, "/gives-up", params={"what": f"many-{n}"}) for n in range(3)]
    for n, run_id in enumerate(made):
        until_status(client, run_id, "dead")
        (directory / f"mended-many-{n}").touch()
    asked = {"name": "POST /gives-up"}
    refused = client.post("/_durable/runs/retry", params=asked, headers=PROXIED)
    is_problem(refused, 403, "operators-only")
    none = client.post("/_durable/runs/retry", params={"name": "POST /nothing"})
    assert (none.status_code, none.json()) == (202, {"retried": [], "next": None})
    retried = client.post("/_durable/runs/retry", params=asked)
    assert retried.status_code == 202
    assert set(made) <= set(retried.json()["retried"])
    for run_id in made:
        until_status(client, run_id, "completed")


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"},
    ],
)  # fmt: skip
def test_another_sites_page_is_no_operator(client: httpx.Client, headers: dict[str, str]) -> None:
    """It can make the browser of whoever works on this machine send what it likes."""
    run_id = waiting(client, "/approval", json={"notify": False})
    for path in ("runs/retry", "events/paid"):
        answer = client.post(f"/_durable/{path}", content=b'{"a": 1}', headers=headers)
        is_problem(answer, 403, "operators-only")
    for path in ("runs", "approvals"):
        is_problem(client.get(f"/_durable/{path}", headers=headers), 403, "operators-only")
    # With a run id it can do what anybody can who has one, and no more.
    assert (
        outcome(send(client, run_id, "refund", json={"approved": True}, headers=headers)) == "kept"
    )
    assert "received" not in kinds(client, run_id)
