"""Events: they find the runs that wait for them by the fields of their payload."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from durable_endpoints.limits import SIGNAL_BYTES_MAX
from tests.support.server import Server
from tests.surface.waiters import PROXIED, kinds, response_of, waiting
from tests.surface.wire import is_problem, until, until_status

ANN, BOB = {"x-user": "ann", **PROXIED}, {"x-user": "bob", **PROXIED}
_names = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("events")) as server:
        yield server


@pytest.fixture
def name() -> str:
    """A name that no other test's runs wait for."""
    return f"paid-{next(_names)}"


def matched(client: httpx.Client, name: str, match: dict[str, Any], **more: Any) -> str:
    return waiting(client, f"/match/{name}", json=match, **more)


def post(client: httpx.Client, name: str, data: Any, **headers: str) -> httpx.Response:
    return client.post(f"/_durable/events/{name}", json=data, headers=headers)


def until_waits(
    client: httpx.Client, run_id: str, times: int, headers: dict[str, str] | None = None
) -> None:
    """Wait until a run durably waits again: only then an event finds it."""
    until("it waits again", lambda: kinds(client, run_id, headers).count("wait") == times)


def reached(answer: httpx.Response, status: int = 202) -> list[str]:
    assert answer.status_code == status, answer.text
    return list(answer.json()["runs"])


def test_an_event_reaches_the_run_that_waits_for_its_fields(
    client: httpx.Client, name: str
) -> None:
    runs = [matched(client, name, {"draft_id": number}) for number in range(3)]
    event = {"draft_id": 1, "amount": 12.5, "lines": [{"sku": "a"}]}
    assert reached(post(client, name, event)) == [runs[1]]
    assert response_of(client, runs[1]) == {"got": [event]}
    for run_id in (runs[0], runs[2]):
        assert "signal" not in kinds(client, run_id)


def test_an_event_reaches_all_runs_that_match(client: httpx.Client, name: str) -> None:
    match = {"topic": "tea"}
    runs = [matched(client, name, match) for _ in range(3)]
    other = matched(client, name, {"topic": "tea", "pot": 2})
    assert reached(post(client, name, {"topic": "tea", "pot": 1})) == runs
    for run_id in runs:
        assert response_of(client, run_id)["got"][0]["pot"] == 1
    assert reached(post(client, name, {"topic": "tea", "pot": 2})) == [other]


MATCHING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"a": 1, "b": "x"}, {"b": "x", "a": 1, "c": None}),
    ({"a": {"x": 1, "y": [1, {"z": 2}]}}, {"a": {"y": [1, {"z": 2}], "x": 1}}),
    ({"a": None}, {"a": None}),
    ({"ü": "日本"}, {"ü": "日本"}),
    ({"a": 1.5}, {"a": 1.50}),
    ({"a,b": 1, "c": 2}, {"a,b": 1, "c": 2}),
    ({"": ""}, {"": ""}),
    ({}, {"a": 1}),
    ({"a": "'; drop table waits --"}, {"a": "'; drop table waits --"}),
]
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"a": 1}, {"a": "1"}), ({"a": "1"}, {"a": 1}), ({"a": 1}, {"a": True}),
    ({"a": 0}, {"a": None}), ({"a": None}, {}), ({"a": 1, "b": 2}, {"a": 1}),
    ({"a": {"x": 1}}, {"a": {"x": 1, "y": 2}}), ({"a": [1, 2]}, {"a": [2, 1]}),
    ({"a": "x"}, {"a": "X"}), ({"a": "x"}, {"a": "x "}), ({"a": "*"}, {"a": "b"}),
    ({"a": "%"}, {"a": "b"}), ({"a": 1}, {"A": 1}), ({"a,b": 1}, {"a": 1, "b": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("match", "event"), MATCHING)
def test_fields_match(
    client: httpx.Client, name: str, match: dict[str, Any], event: dict[str, Any]
) -> None:
    run_id = matched(client, name, match)
    assert reached(post(client, name, event)) == [run_id]
    assert response_of(client, run_id) == {"got": [event]}


@pytest.mark.parametrize(("match", "event"), OTHER)
def test_fields_do_not_match(
    client: httpx.Client, name: str, match: dict[str, Any], event: dict[str, Any]
) -> None:
    run_id = matched(client, name, match)
    is_problem(post(client, name, event), 404, "nobody-waits")
    assert "signal" not in kinds(client, run_id)


def test_runs_that_do_not_match_on_fields_are_not_reached(client: httpx.Client, name: str) -> None:
    waiting(client, "/json", params={"name": name})
    waiting(client, "/approval", json={"name": name, "notify": False})
    is_problem(post(client, name, {"approved": True}), 404, "nobody-waits")


@pytest.mark.parametrize("data", [None, [1], "text", 5, True])
def test_an_event_is_an_object(client: httpx.Client, name: str, data: Any) -> None:
    is_problem(post(client, name, data), 422, "no-fields")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("paid", b"{", 400, "malformed-json"),
        ("paid", b'{"a": "' + b"x" * SIGNAL_BYTES_MAX + b'"}', 413, "body-too-large"),
        ("%00", b"{}", 400, "malformed-name"),
        ("x" * 201, b"{}", 400, "malformed-name"),
        ("", b"{}", 404, "not-found"),
        ("a/b", b"{}", 404, "not-found"),
    ],
)
def test_a_bad_event(client: httpx.Client, path: str, body: bytes, status: int, kind: str) -> None:
    is_problem(client.post(f"/_durable/events/{path}", content=body), status, kind)


def test_events_are_for_operators_and_principals(client: httpx.Client, name: str) -> None:
    matched(client, name, {"a": 1})
    is_problem(post(client, name, {"a": 1}, **PROXIED), 403, "operators-only")


@pytest.mark.parametrize("header", ["webhook-id", "idempotency-key"])
def test_an_event_sent_again_reaches_nobody_twice(
    client: httpx.Client, name: str, header: str
) -> None:
    run_id = matched(client, name, {"a": 1, "times": 2})
    first = post(client, name, {"a": 1, "n": 1}, **{header: "e-1"})
    assert reached(first) == [run_id]
    until_waits(client, run_id, 2)
    for _ in range(2):
        assert reached(post(client, name, {"a": 1, "n": 1}, **{header: "e-1"}), 200) == [run_id]
    assert kinds(client, run_id).count("signal") == 1
    is_problem(post(client, "another", {"a": 1}, **{header: "e-1"}), 404, "nobody-waits")
    assert reached(post(client, name, {"a": 1, "n": 2}, **{header: "e-2"})) == [run_id]
    assert [one["n"] for one in response_of(client, run_id)["got"]] == [1, 2]
    is_problem(post(client, name, {"a": 1, "n": 3}, **{header: "e-3"}), 404, "nobody-waits")


def test_ten_at_once_with_one_id_are_one_event(
    server: Server, client: httpx.Client, name: str
) -> None:
    run_id = matched(client, name, {"a": 1, "times": 3})

    def send(_: int) -> httpx.Response:
        url = f"{server.url}/_durable/events/{name}"
        return httpx.post(url, json={"a": 1}, headers={"webhook-id": "same"}, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(send, range(10)))
    assert 202 in {answer.status_code for answer in answers}
    assert {answer.status_code for answer in answers} <= {200, 202, 404}
    assert kinds(client, run_id).count("signal") == 1


def test_an_event_sent_again_after_a_restart_is_not_delivered_twice(
    server: Server, client: httpx.Client, name: str
) -> None:
    run_id = matched(client, name, {"a": 1, "times": 2})
    assert reached(post(client, name, {"a": 1}, **{"webhook-id": "e"})) == [run_id]
    until_waits(client, run_id, 2)
    server.restart()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        again = post(client, name, {"a": 1}, **{"webhook-id": "e"})
        assert again.json() == {"runs": [run_id]}
        assert kinds(client, run_id).count("signal") == 1
        assert reached(post(client, name, {"a": 1}, **{"webhook-id": "f"})) == [run_id]
        assert len(response_of(client, run_id)["got"]) == 2


def test_events_reach_the_runs_of_their_principal_only(
    serve_waiting: Callable[..., Server], name: str
) -> None:
    server = serve_waiting(WAITING_PRINCIPAL="1")
    with httpx.Client(base_url=server.url, timeout=30) as client:
        anns, bobs = (
            matched(client, name, {"a": 1, "times": 2}, headers=headers) for headers in (ANN, BOB)
        )
        is_problem(post(client, name, {"a": 1}, **PROXIED), 403, "operators-only")
        is_problem(
            post(client, name, {"a": 1}, **{**PROXIED, "x-user": "eve"}), 404, "nobody-waits"
        )
        same = {"webhook-id": "1"}  # chosen by each of them
        assert reached(post(client, name, {"a": 1, "n": 1}, **ANN, **same)) == [anns]
        assert reached(post(client, name, {"a": 1, "n": 2}, **BOB, **same)) == [bobs]
        assert reached(post(client, name, {"a": 1, "n": 1}, **ANN, **same), 200) == [anns]
        for run_id, headers in ((anns, ANN), (bobs, BOB)):
            until_waits(client, run_id, 2, headers)
        # From this machine, without a proxy: an operator's event, for everybody's runs.
        assert reached(post(client, name, {"a": 1, "n": 3})) == [anns, bobs]
        for run_id, headers, got in ((anns, ANN, [1, 3]), (bobs, BOB, [2, 3])):
            until_status(client, run_id, "completed", headers=headers)
            path = f"/_durable/runs/{run_id}/response"
            answer = client.get(path, headers=headers).json()
            assert [one["n"] for one in answer["got"]] == got
