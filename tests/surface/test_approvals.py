"""Approvals: a page that changes nothing, one decision, links that cannot be made or bent."""

from __future__ import annotations

import base64
import concurrent.futures
import re
import stat
from collections.abc import Iterator
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.links import new_secret, parse_secret, sign
from tests.support.server import Server
from tests.surface.waiters import (
    FORM,
    NOBODY,
    PROXIED,
    accepted,
    asked,
    kinds,
    link_of,
    response_of,
    send,
    text_of,
    waiting,
)
from tests.surface.wire import is_problem, until, until_noted, until_status

ANN, BOB = {"x-user": "ann", **PROXIED}, {"x-user": "bob", **PROXIED}
YES, NO = {"approved": True}, {"approved": False}
SECRETS = [new_secret(), new_secret()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"WAITING_SECRETS": " ".join(SECRETS)}
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("persons"), env=env) as server:
        yield server


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server behind a proxy, with principals, and without secrets of its own."""
    directory, options = tmp_path_factory.mktemp("elsewhere"), ("--root-path", "/behind")
    env = {"WAITING_PRINCIPAL": "1"}
    with Server("tests.apps.waiting:app", directory, env=env, options=options) as server:
        yield server


def forged(run_id: str, wait: str = "0", secret: str = SECRETS[0], expires_s: int = 2**33) -> str:
    return "/_durable/approvals/" + sign([parse_secret(secret)], run_id, wait, expires_s)


def sent(directory: Path, run_id: str) -> str:
    """Return the link that was sent: a moment after its wait was durable."""
    file = directory / f"link-{run_id}"
    return str(until("the link is sent", lambda: file.exists() and file.read_text()))


# --- the page


def test_looking_changes_nothing(client: httpx.Client) -> None:
    """Mail programs and chat servers open links before a person does."""
    run_id, link = asked(client, summary="Refund 40 EUR to Ann?", timeout=3600)
    # Until the person is told, the run has something to write down of its own.
    until_status(client, run_id, "suspended")
    before = kinds(client, run_id)
    for _ in range(2):
        page = client.get(link, headers=FORM)
        assert page.status_code == 200
        assert "Approve: refund" in text_of(page)
        assert "Refund 40 EUR to Ann?" in text_of(page)
    for method in ("GET", "HEAD"):
        # A body, and whatever a client may send with it, decides nothing either.
        answer = client.request(method, link, json=YES, headers={"purpose": "prefetch"})
        assert answer.status_code == 200
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        is_problem(client.request(method, link, json=YES), 405, "method-not-allowed")
    assert kinds(client, run_id) == before
    assert client.get(link, headers={"accept": "application/json"}).json()["open"] is True


def test_the_page_may_load_nothing_and_be_framed_by_nobody(client: httpx.Client) -> None:
    _, link = asked(client)
    page = client.get(link, headers=FORM)
    policy = page.headers["content-security-policy"]
    for rule in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'",
                 "base-uri 'none'"):  # fmt: skip
        assert rule in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in page.text
    assert not re.search(r"(src|href)=", page.text)


HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</p></main><form action=//evil>",
    "<svg/onload=alert(1)>", "'\"><iframe src=javascript:alert(1)>", "[x](javascript:alert(1))",
    "\u202epay eve\u2066\u2069", "a\x00b\x1b[2J", "&lt;b&gt;",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_summary_is_inert_text(client: httpx.Client, text: str) -> None:
    _, link = asked(client, summary=text)
    body = client.get(link, headers=FORM).text.partition("<main>")[2]
    assert body.count("<form") == 1
    assert not re.search(r"<(script|img|svg|iframe|a)\b", body)
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00\x1b]", body)
    shown = re.sub(r"[\u202e\u2066\u2069\x00\x1b]", "", text)
    assert f"<p>{shown}</p>" in unescape(body)


def test_a_hostile_name_is_inert_text(client: httpx.Client) -> None:
    _, link = asked(client, name="<b onclick=x>&\"'", notify=False)
    page = client.get(link, headers=FORM).text
    assert "<b onclick" not in page
    assert page.count("&lt;b onclick=x&gt;&amp;&quot;&#x27;") == 2


def test_a_text_keeps_its_words_and_lines(client: httpx.Client) -> None:
    _, link = asked(client, summary="1\u00a0000\u202f€\nfor \u65e5\u672c, \u00e9t\u00e9")
    assert "1 000 €\nfor 日本, été" in text_of(client.get(link, headers=FORM))


# --- one decision


@pytest.mark.parametrize(("word", "approved"), [("approve", True), ("decline", False)])
@pytest.mark.parametrize("then", ["", "end"])
def test_a_form_decides_once(client: httpx.Client, word: str, approved: bool, then: str) -> None:
    run_id, link = asked(client, then=then)
    form = {"decision": word, "by": "Ann <ann@x>", "comment": "fine & good"}
    page = client.post(link, data=form, headers=FORM)
    assert page.status_code == 200
    assert ("Approved" if approved else "Declined") in text_of(page)
    if not then:
        until_status(client, run_id, "completed")
    other = client.post(link, data={"decision": "decline", "by": "Eve"}, headers=FORM)
    assert other.status_code == 409
    told = f"It was {'approved' if approved else 'declined'} by Ann <ann@x> on 20"
    assert told in text_of(other)
    looked = client.get(link, headers=FORM)
    assert looked.status_code == 200
    assert told in text_of(looked)
    assert "<form" not in looked.text
    if then:
        send(client, run_id, then)
    decided = response_of(client, run_id)
    assert (decided["approved"], decided["by"]) == (approved, "Ann <ann@x>")
    assert decided["comment"] == "fine & good"
    age = datetime.now().astimezone() - datetime.fromisoformat(decided["at"])
    assert abs(age.total_seconds()) < 60
    assert kinds(client, run_id).count("received") == (2 if then else 1)


@pytest.mark.parametrize("then", ["", "end"])
def test_a_program_decides_once(client: httpx.Client, then: str) -> None:
    run_id, link = asked(client, then=then)
    answer = client.post(link, json={**YES, "by": "bot"})
    assert (answer.status_code, answer.json()) == (202, {"decided": {**YES, "comment": None}})
    if not then:
        until_status(client, run_id, "completed")
    problem = is_problem(client.post(link, json=NO), 409, "already-answered")
    assert problem["answer"]["by"] == "bot"
    assert problem["answer"]["data"] == {**YES, "comment": None}
    looked = client.get(link, headers={"accept": "application/json"}).json()
    assert looked["open"] is False
    assert looked["answer"] == problem["answer"]


def test_of_twenty_at_once_one_decides(server: Server, client: httpx.Client) -> None:
    run_id, link = asked(client)

    def post(number: int) -> httpx.Response:
        decision = {"approved": number % 2 == 0, "by": str(number)}
        return httpx.post(server.url + link, json=decision, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 19
    (first,) = [number for number, answer in enumerate(answers) if answer.status_code == 202]
    decided = response_of(client, run_id)
    assert (decided["approved"], decided["by"]) == (first % 2 == 0, str(first))
    assert {a.json()["answer"]["by"] for a in answers if a.status_code == 409} == {str(first)}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"approved": "yes"}, {"approved": 1}, {"approved": None}, [True], "approve", None,
        {"decision": "approve"}, {**YES, "comment": {"x": 1}}, {**YES, "by": ["ann"]},
        {**YES, "comment": "x" * 2001}, {**YES, "by": "x" * 201},
    ],
)  # fmt: skip
def test_what_is_no_decision_is_a_422(client: httpx.Client, body: Any) -> None:
    run_id, link = asked(client)
    is_problem(client.post(link, json=body), 422, "no-decision")
    assert "signal" not in kinds(client, run_id)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422), ("decision=", 422), ("decision=perhaps", 422), ("approved=true", 422),
        ("&".join(f"a{n}=1" for n in range(50)), 400), ("decision=approve&by=" + "x" * 300, 422),
        ("decision=approve&comment=" + "x" * 300_000, 413), ("\x00\udcff", 400),
    ],
)  # fmt: skip
def test_a_bad_form_is_told_so_on_a_page(client: httpx.Client, body: str, status: int) -> None:
    run_id, link = asked(client)
    headers = {**FORM, "content-type": "application/x-www-form-urlencoded"}
    page = client.post(link, content=body.encode("utf-8", "surrogateescape"), headers=headers)
    assert page.status_code == status, page.text
    assert page.headers["content-type"].startswith("text/html")
    assert "content-security-policy" in page.headers
    assert "signal" not in kinds(client, run_id)


def test_what_was_not_decided_in_time_is_not_decided_later(
    client: httpx.Client, directory: Path
) -> None:
    run_id = waiting(client, "/approval", json={"timeout": 0.3, "then": ""})
    link = sent(directory, run_id)  # the list may have it no more
    assert response_of(client, run_id) == {"timeout": "refund"}
    late = client.post(link, json=YES)
    assert late.status_code in (409, 410), late.text
    assert client.get("/_durable/approvals").status_code == 200
    page = client.get(link, headers=FORM)
    assert page.status_code in (200, 410)
    assert "<form" not in page.text


def test_a_person_may_be_faster_than_who_tells_them(client: httpx.Client, directory: Path) -> None:
    """The link is out before `notify` has returned."""
    run_id = accepted(client, "/approval", json={"name": "slowly", "summary": "Quick?"})
    until_noted(directory, "link slowly")
    link = (directory / f"link-{run_id}").read_text()
    assert "Quick?" in text_of(client.get(link, headers=FORM))
    assert client.post(link, json={**YES, "by": "ann"}).status_code == 202
    is_problem(client.post(link, json=NO), 409, "already-answered")
    (directory / "hold-slowly").touch()
    assert response_of(client, run_id)["by"] == "ann"


def test_a_cancelled_run_takes_no_decision(client: httpx.Client) -> None:
    run_id, link = asked(client)
    assert client.post(f"/_durable/runs/{run_id}/cancel").status_code == 202
    until_status(client, run_id, "cancelled")
    is_problem(client.post(link, json=YES), 409, "run-ended")
    page = client.post(link, data={"decision": "approve"}, headers=FORM)
    assert page.status_code == 409
    assert "cancelled" in text_of(page)
    assert "cancelled" in text_of(client.get(link, headers=FORM))
    assert client.delete(f"/_durable/runs/{run_id}").status_code == 204
    for method in ("GET", "POST"):
        is_problem(client.request(method, link, json=YES), 410, "run-deleted")


# --- links


def test_the_link_of_the_list_and_the_one_sent_are_good(
    client: httpx.Client, directory: Path
) -> None:
    run_id, link = asked(client, then="end")
    other = sent(directory, run_id)
    assert client.get(other, headers=FORM).text == client.get(link, headers=FORM).text
    assert client.post(other, json=YES).status_code == 202
    is_problem(client.post(link, json=YES), 409, "already-answered")


def bent(token: str) -> Iterator[str]:
    """Yield tokens that are not this one, though nearly."""
    content, signature = token.split(".")
    yield from (content, content + ".", f"{content}.{signature[:-1]}", f"{content}.{signature}x")
    yield f"{content}.{'A' * 43}"
    yield f"{content}.{signature[::-1]}"
    yield f"{signature}.{content}"
    yield f"{content}=.{signature}"
    raw = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))
    last = b"8" if raw.endswith(b"9") else b"9"
    for other in (raw.replace(b".", b".9", 1), raw + b"1", raw[:-1] + last, b"", b"..", b"\xff"):
        yield base64.urlsafe_b64encode(other).rstrip(b"=").decode() + "." + signature
    yield from ("%00", "a" * 5000, "x.y", "..%2f..", "'; drop table runs --", "%ff%fe")


def test_a_bent_link_is_none(client: httpx.Client) -> None:
    run_id, link = asked(client)
    for token in bent(link.rpartition("/")[2]):
        path = f"/_durable/approvals/{token}"
        for method in ("GET", "POST"):
            answer = client.request(method, path, json=YES)
            assert answer.status_code == 404, (token, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
    page = client.get(link[:-1], headers=FORM)
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "signal" not in kinds(client, run_id)


def test_a_link_is_for_one_wait_of_one_run(client: httpx.Client) -> None:
    run_id, _ = asked(client)
    other = waiting(client, "/json")
    is_problem(client.post(forged(run_id, secret=new_secret()), json=YES), 404, "bad-link")
    is_problem(client.post(forged(run_id, expires_s=1), json=YES), 410, "link-expired")
    is_problem(client.get(forged(run_id, expires_s=1)), 410, "link-expired")
    page = client.get(forged(run_id, expires_s=1), headers=FORM)
    assert page.status_code == 410
    assert "expired" in text_of(page)
    is_problem(client.post(forged(NOBODY), json=YES), 410, "run-deleted")
    # Signed properly, but for no wait, or for one that is no approval.
    for link in (*(forged(run_id, wait) for wait in ("7", "0!0", "*")), forged(other)):
        is_problem(client.post(link, json=YES), 409, "not-waiting")
    assert "received" not in kinds(client, run_id) + kinds(client, other)


def test_either_secret_is_good_while_they_are_changed(client: httpx.Client) -> None:
    for number, secret in enumerate(SECRETS):
        run_id, _ = asked(client, name=f"rotated-{number}")
        ident = base64.urlsafe_b64decode(
            link_of(client, run_id).rpartition("/")[2].split(".")[0] + "=="
        ).decode()
        assert client.post(forged(run_id, ident.split(".")[2], secret), json=YES).status_code == 202


def test_a_links_secret_is_kept_beside_the_database(elsewhere: Server) -> None:
    """Without secrets of the app's own; it outlives the process, and is for its owner only."""
    with httpx.Client(base_url=elsewhere.url, timeout=30) as client:
        run_id, link = asked(client, then="end")
        at_home = link.removeprefix("/behind")
        elsewhere.restart()
        kept = elsewhere.directory / "durable.db.secret"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert client.get(at_home, headers=FORM).status_code == 200
        assert client.post(at_home, json={**YES, "by": "ann"}).status_code == 202
        is_problem(client.post(at_home, json=NO), 409, "already-answered")
        send(client, run_id, "end")
        assert response_of(client, run_id)["by"] == "ann"
    stored = b"".join(path.read_bytes() for path in elsewhere.directory.glob("durable.db*"))
    assert link.rpartition(".")[2].encode() not in stored  # the signature is nowhere
    assert stored.count(kept.read_bytes().strip()) == 1  # in that file


def test_a_link_leads_through_a_proxy(elsewhere: Server) -> None:
    with httpx.Client(base_url=elsewhere.url, timeout=30) as client:
        _, link = asked(client, then="end")
        assert link.startswith("/behind/_durable/approvals/")
        # This server is its own proxy, and strips nothing.
        assert client.post(link.removeprefix("/behind"), json=YES).status_code == 202


# --- who may see and decide


def test_the_open_approvals_are_listed(client: httpx.Client) -> None:
    run_id, _ = asked(client, name="listed", summary="See me", timeout=3600)
    decision = waiting(client, "/escalates", params={"claim": "listed"})
    listed = {one["run_id"]: one for one in client.get("/_durable/approvals").json()["approvals"]}
    shown = listed[run_id]
    assert (shown["kind"], shown["name"], shown["summary"]) == ("approval", "listed", "See me")
    since, until_ = (datetime.fromisoformat(shown[name]) for name in ("since", "until"))
    assert 3595 < (until_ - since).total_seconds() < 3605
    assert listed[decision]["kind"] == "decision"
    assert listed[decision]["name"] == "judge"
    assert "who can judge listed?" in listed[decision]["summary"]
    assert "link" not in listed[decision]
    run = client.get(f"/_durable/runs/{run_id}").json()
    if run["status"] == "suspended":
        assert run["waiting"][0]["kind"] == "approval"
        assert run["wake_at"] == shown["until"]
    assert client.post(shown["link"], json=YES).status_code == 202
    ids = [one["run_id"] for one in client.get("/_durable/approvals").json()["approvals"]]
    assert run_id not in ids
    is_problem(client.get("/_durable/approvals", headers=PROXIED), 403, "operators-only")
    is_problem(client.post("/_durable/approvals"), 405, "method-not-allowed")


def test_principals_see_their_own_and_cannot_approve_it(elsewhere: Server) -> None:
    with httpx.Client(base_url=elsewhere.url, timeout=30) as client:
        anns = waiting(client, "/approval", json={"then": "end"}, headers=ANN)
        waiting(client, "/approval", json={}, headers=BOB)
        for headers, seen in ((ANN, True), (BOB, False)):
            listed = client.get("/_durable/approvals", headers=headers).json()["approvals"]
            assert ([one["run_id"] for one in listed] == [anns]) is seen
            assert not any("link" in one for one in listed)
        # Her own run is hers to signal, but not to approve.
        assert send(client, anns, "refund", json=YES, headers=ANN).json()["outcome"] == "kept"
        for headers in (BOB, PROXIED):
            is_problem(send(client, anns, "end", headers=headers), 404, "run-not-found")
            is_problem(send(client, NOBODY, "end", headers=headers), 404, "run-not-found")
            retry = client.post(f"/_durable/runs/{anns}/retry", headers=headers)
            is_problem(retry, 404, "run-not-found")
        listed = client.get("/_durable/approvals").json()["approvals"]  # an operator
        (link,) = [one["link"] for one in listed if one["run_id"] == anns]
        # Who has the link decides, whoever they are; signed in, they cannot use another's name.
        at_home = link.removeprefix("/behind")
        decided = client.post(at_home, json={**YES, "by": "somebody else"}, headers=BOB)
        assert decided.status_code == 202
        assert send(client, anns, "end", headers=ANN).status_code == 202
        until_status(client, anns, "completed", headers=ANN)
        answer = client.get(f"/_durable/runs/{anns}/response", headers=ANN).json()
        assert (answer["approved"], answer["by"]) == (True, "bob")
