"""The pages over HTTP: who gets them, what is in them, and what a form may do."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import durable_endpoints.console as console
from durable_endpoints.console.pages import LOOK_BUSY_S, LOOK_S, _every_s
from durable_endpoints.console.search import Found
from durable_endpoints.records import RunRecord
from tests.console.runs import begun, ended, send, token_of, waiting
from tests.console.seed import dead_runs
from tests.support.server import Server
from tests.surface.wire import until, until_status

STATIC = Path(console.__file__).parent / "static"
# What is not ours, as its release has it (htmx.org 4.0.1 on npm).
VENDORED = {
    "htmx.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "hx-sse.min.js": "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
    "htmx.LICENSE": "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38",
}
HELD = 33  # entries of a run of /ask that waits for its hold
NOBODY = "01999999-9999-7999-8999-999999999999"


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_files_are_the_released_ones(name: str) -> None:
    assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == VENDORED[name]


def record_of(created_at_ms: int) -> RunRecord:
    return RunRecord(NOBODY, "POST /ask", "running", created_at_ms, created_at_ms)


def test_every_page_is_guarded(client: httpx.Client) -> None:
    run_id = ended(client, "/ask")
    run = f"/_durable/console/runs/{run_id}"
    paths = ["/_durable/", "/_durable/console/waiting", "/_durable/console/health"]
    paths += ["/_durable/console/activity", run, f"{run}/events", f"{run}/request"]
    paths += [f"{run}/journal", f"{run}/entries/0", f"{run}/journal.json", f"{run}/head"]
    for path in [*paths, "/_durable/console/nothing"]:
        answer = client.get(path)
        assert answer.status_code == (404 if path.endswith("nothing") else 200), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers
        text = answer.text if answer.headers["content-type"].startswith("text/html") else ""
        assert not re.search(r"<script(?! src=\"/)|<style|<[a-z]+ [^>]*\s(style|on[a-z]+)=", text)
        assert not re.search(r'<[a-z]+ [^>]*(href|src|action)="(?!/|#)', text), path


def test_static_files_are_kept_and_there_are_no_others(client: httpx.Client) -> None:
    address = re.search(r'href="([^"]*console\.css\?[^"]*)"', client.get("/_durable/").text)
    assert address is not None
    answer = client.get(address[1])
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/css")
    script = re.search(r'src="([^"]*htmx\.js[^"]*)"', client.get("/_durable/").text)
    assert script is not None
    joined = client.get(script[1]).content
    assert joined == b"\n".join((STATIC / n).read_bytes() for n in list(VENDORED)[:2])
    for name in ("../app.py", "%2e%2e/app.py", "base.html", ""):
        assert client.get(f"/_durable/console/static/{name}").status_code in (404, 200)
        assert "import" not in client.get(f"/_durable/console/static/{name}").text


def test_a_list_that_is_new_at_every_look_asks_less_often(client: httpx.Client) -> None:
    run = Found([record_of(50_000), record_of(49_500)], older="more")
    assert _every_s(run, 51_000) == LOOK_BUSY_S
    assert _every_s(run, 51_500) == LOOK_S
    assert _every_s(Found(run.runs), 51_000) == LOOK_S  # all runs that there are
    assert _every_s(Found([], older="more"), 51_000) == LOOK_S  # searched for, not found yet
    ended(client, "/ask")
    assert f'hx-trigger="every {LOOK_S}s"' in client.get("/_durable/").text


def test_without_a_slash_and_under_control_routes(client: httpx.Client) -> None:
    answer = client.get("/_durable", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/_durable/")
    assert client.get("/_durable/runs").headers["content-type"] == "application/json"
    assert client.get("/_durable/nothing").headers["content-type"] == "application/problem+json"
    assert client.post("/_durable/console/health").status_code == 405


@pytest.mark.parametrize(
    "run_id", [NOBODY, "nothing", "..%2f..%2fetc", "a" * 9000, "'; drop table runs", "%00", "漢"]
)
def test_unknown_runs(client: httpx.Client, run_id: str) -> None:
    for tail in ("", "/events", "/events.sse", "/journal", "/journal.json", "/request", "/head"):
        answer = client.get(f"/_durable/console/runs/{run_id}{tail}")
        assert answer.status_code == 404, tail
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-forwarded-for": "10.0.0.1"}])
def test_only_this_machine_and_only_under_its_name(
    client: httpx.Client, headers: dict[str, str]
) -> None:
    answer = client.get("/_durable/", headers=headers)
    assert answer.status_code == 403
    assert "<table" not in answer.text


def test_runs_are_found(client: httpx.Client) -> None:
    mine = ended(client, "/ask", params={"q": "find me"}, headers={"x-user": "ada@example.com"})
    failed = ended(client, "/fail", params={"reason": "the needle 4711"})

    def ids(**params: str) -> list[str]:
        page = client.get("/_durable/", params=params).text
        return re.findall(r'id="r-([0-9a-f-]{36})"', page)

    assert {mine, failed} <= set(ids())
    assert ids(q=mine) == ids(q=mine[:23]) == [mine]
    assert mine in ids(principal="ada@example.com")
    assert failed not in ids(principal="ada@example.com")
    assert failed in ids(status="failed", error="NEEDLE 4711", age="5m")
    assert mine not in ids(status="failed")
    assert mine in ids(name="POST /ask")
    assert mine in ids(name="post*A*k")
    assert ids(name="POST /nothing") == []
    assert ids(q="' or 1=1 --") == []
    assert "No run fits" in client.get("/_durable/", params={"q": "<b>nothing</b>"}).text
    assert set(ids(status="nonsense", age="9y", before="x")) == set(ids())


def test_what_a_run_waits_for_is_said(client: httpx.Client) -> None:
    asked = waiting(client, "/approve")
    asleep = waiting(client, "/sleepy")
    page = client.get("/_durable/", params={"status": "suspended"}).text
    assert "waits for a person: <bdi>approval refund</bdi>" in page
    assert "waits for <bdi>timer sleep</bdi>" in page
    listed = client.get("/_durable/console/waiting").text
    assert asked in listed
    assert asleep not in listed
    assert "Refund order 7: 12.50 € to Ada?" in listed


def test_the_pages_of_a_run(client: httpx.Client) -> None:
    run_id = ended(
        client, "/ask", params={"q": "why", "api_key": "hush"},
        headers={"authorization": "Bearer hush-hush", "x-trace": "kept"},
    )  # fmt: skip
    base = f"/_durable/console/runs/{run_id}"
    timeline = client.get(base).text
    for text in ("10 steps", "branch 1", "flaky", "attempt 3", "answer", "charge", "12 events"):
        assert text in timeline, text
    request = client.get(f"{base}/request").text
    assert "x-trace" in request
    assert "text/event-stream" in request
    assert "hush" not in request
    events = client.get(f"{base}/events").text
    assert "{&#34;documents&#34;:3}" in events
    assert "progress" in events
    as_text = client.get(f"{base}/events", params={"as": "text"}).text
    assert "{&#34;token&#34;:&#34;An &#34;}" in as_text
    journal = client.get(f"{base}/journal").text
    assert len(re.findall(r"<tr class=\"kind-", journal)) == 40
    later = client.get(f"{base}/journal", params={"from": "30"}).text
    assert len(re.findall(r"<tr class=\"kind-", later)) == 10
    assert "search" in client.get(f"{base}/entries/2").text
    assert client.get(f"{base}/entries/9999").status_code == 404
    zoomed = client.get(base, params={"from": "1000", "to": "22000"}).text
    assert "Whole run" in zoomed
    for window in ({"from": "x", "to": "1"}, {"from": "9" * 99, "to": "1"}, {"from": "-1"}):
        assert client.get(base, params=window).status_code == 200


def test_a_run_is_downloaded_whole(client: httpx.Client) -> None:
    run_id = ended(client, "/ask")
    answer = client.get(f"/_durable/console/runs/{run_id}/journal.json")
    assert answer.headers["content-disposition"] == f'attachment; filename="run-{run_id}.json"'
    assert answer.headers["content-type"] == "application/json"
    whole = answer.json()
    assert whole["run"]["run_id"] == run_id
    assert [entry["seq"] for entry in whole["entries"]] == list(range(40))
    assert json.loads(whole["entries"][2]["payload"]) == [f"why?: document {n}" for n in range(3)]


def test_cancel_and_delete(client: httpx.Client) -> None:
    run_id = begun(client, "/ask", params={"hold": "never"})
    until_status(client, run_id, "running")
    assert send(client, run_id, "delete").status_code == 409
    answer = send(client, run_id, "cancel")
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/_durable/console/runs/{run_id}?done=cancel"
    until_status(client, run_id, "cancelled")
    assert send(client, run_id, "cancel").status_code == 409
    assert send(client, run_id, "delete").headers["location"] == "/_durable/?done=delete"
    assert client.get(f"/_durable/console/runs/{run_id}").status_code == 410
    assert send(client, run_id, "delete").status_code == 410
    log = client.get("/_durable/console/activity").text
    assert log.count(run_id) >= 8  # each once in the address and once in the text
    assert "asked to stop" in log
    assert "refused: not now" in log


def test_people_answer(client: httpx.Client, server: Server) -> None:
    run_id = waiting(client, "/approve")
    answer = send(client, run_id, "approve", wait="refund", comment="go on")
    assert answer.status_code == 303, answer.text
    until_status(client, run_id, "completed")
    result = client.get(f"/_durable/runs/{run_id}/response").json()
    assert result == {"approved": True, "by": "127.0.0.1", "comment": "go on"}
    assert send(client, run_id, "decline", wait="refund").status_code == 409
    declined = waiting(client, "/approve")
    send(client, declined, "decline", wait="refund")
    until_status(client, declined, "completed")
    assert client.get(f"/_durable/runs/{declined}/response").json()["approved"] is False
    hooked = waiting(client, "/webhook")
    assert send(client, hooked, "signal", wait="payment", data="{broken").status_code == 400
    assert send(client, hooked, "signal", wait="payment", data='{"cents": 5}').status_code == 303
    until_status(client, hooked, "completed")
    assert client.get(f"/_durable/runs/{hooked}/response").json() == {"data": {"cents": 5}}
    audited = [
        line for line in server.log.read_text().splitlines() if "durable_endpoints.audit" in line
    ]
    assert any(f"approve run={run_id} by=127.0.0.1 role=operator" in line for line in audited)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
        {"content-type": "application/json"},
        {"cookie": ""},
    ],
)
def test_forms_of_others_are_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    run_id = begun(client, "/sleepy")
    answer = send(client, run_id, "cancel", headers=headers)
    assert answer.status_code == 403
    assert client.get(f"/_durable/runs/{run_id}").json()["status"] in ("running", "suspended")


def test_forms_without_the_token_are_refused(client: httpx.Client) -> None:
    run_id = begun(client, "/sleepy")
    known = token_of(client)
    for token in ("", "x", known + "x", known[:-1]):
        assert send(client, run_id, "cancel", token=token).status_code == 403
    assert send(client, run_id, "cancel", token=known, junk="x" * 70_000).status_code == 413
    assert send(client, run_id, "nonsense").status_code == 404
    assert send(client, NOBODY, "cancel").status_code == 404
    assert send(client, run_id, "cancel", token=known).status_code == 303


def test_roles(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        run_id = begun(client, "/sleepy")
        assert client.get("/_durable/").status_code == 401
        client.headers["x-role"] = "viewer"
        page = client.get(f"/_durable/console/runs/{run_id}").text
        assert "Cancel" not in page
        assert ">viewer</span>" in page
        assert send(client, run_id, "cancel").status_code == 403
        client.headers.update({"x-role": "operator", "x-name": "grace@example.com"})
        assert "Cancel…" in client.get(f"/_durable/console/runs/{run_id}").text
        assert send(client, run_id, "cancel").status_code == 303
        log = client.get("/_durable/console/activity").text
        assert "grace@example.com" in log
        assert "refused: not yours to do" in log
        client.headers["x-role"] = ""
        assert client.get("/_durable/console/activity").status_code == 401


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Server]:
    server = Server("tests.apps.console:app", tmp_path)
    yield server
    if server.running:
        server.kill()


def test_dead_runs_are_dealt_with_at_once(stopped: Server, tmp_path: Path) -> None:
    dead_runs(tmp_path / "durable.db", 12)
    stopped.start()
    with httpx.Client(base_url=stopped.url, timeout=30) as client:
        page = client.get("/_durable/", params={"status": "dead"}).text
        ids = re.findall(r'id="r-([0-9a-f-]{36})"', page)
        assert len(ids) == 12
        assert "Let it go on: all 12 shown…" in page
        origin = {"origin": stopped.url}
        fields = {"token": token_of(client), "status": "dead", "runs": ",".join([*ids[:5], NOBODY])}
        answer = client.post("/_durable/console/many/delete", data=fields, headers=origin)
        assert answer.headers["location"] == "/_durable/?status=dead&done=delete&n=5&left=1"
        assert "done for 5, left as they are: 1" in client.get(answer.headers["location"]).text
        fields["runs"] = ",".join(ids[5:])
        assert client.post("/_durable/console/many/approve", data=fields, headers=origin)
        answer = client.post("/_durable/console/many/retry", data=fields, headers=origin)
        assert "done=retry&n=7&left=0" in answer.headers["location"]
        until(
            "no run is dead any more",
            lambda: not client.get("/_durable/runs", params={"status": "dead"}).json()["runs"],
        )


def test_a_damaged_journal_is_shown_up_to_the_damage(stopped: Server, tmp_path: Path) -> None:
    stopped.start()
    with httpx.Client(base_url=stopped.url, timeout=30) as client:
        run_id = begun(client, "/ask", params={"hold": "damage"})
        journal = f"/_durable/runs/{run_id}/journal?limit=500"
        # What follows the hold is in frames of its own then, however the commits fall.
        until("all before is durable", lambda: len(client.get(journal).json()["entries"]) == HELD)
        (tmp_path / "damage").touch()
        until_status(client, run_id, "completed")
    stopped.terminate()
    with sqlite3.connect(tmp_path / "durable.db") as db:
        # The last bits of a frame's id are the place of its first entry.
        db.execute("update frames set data = cast(data || x'00' as blob) where id % 1048576 >= ?",
                   (HELD,))  # fmt: skip
    db.close()
    stopped.start()
    with httpx.Client(base_url=stopped.url, timeout=30) as client:
        for tail in ("", "/journal"):
            answer = client.get(f"/_durable/console/runs/{run_id}{tail}")
            assert answer.status_code == 200
            assert "The journal is damaged" in answer.text
            assert "search" in answer.text
        for tail in ("/events", "/entries/38"):
            answer = client.get(f"/_durable/console/runs/{run_id}{tail}")
            assert answer.status_code == 500
            assert "The journal is damaged" in answer.text


def test_without_jinja_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ModuleNotFoundError('no', name='jinja2')")
    with Server("tests.apps.console:app", tmp_path, env={"PYTHONPATH": str(tmp_path)}) as server:
        answer = httpx.get(f"{server.url}/_durable/")
        assert answer.status_code == 404
        assert "pip install 'durable-endpoints[console]'" in answer.text


def test_a_fork_beside_its_origin(client: httpx.Client) -> None:
    origin = ended(client, "/ask", params={"q": "fork"})
    base = f"/_durable/console/runs/{origin}"
    assert "Fork with another result…" in client.get(f"{base}/entries/2").text
    assert "Run it with another body…" in client.get(f"{base}/entries/0").text

    def fork(**fields: str) -> httpx.Response:
        fields["token"] = token_of(client)
        return client.post(f"{base}/fork", data=fields, headers={"origin": str(client.base_url)})

    assert fork(before="x").status_code == 422
    assert fork(before="9999").status_code == 422
    assert fork(before="3", key="0 search", result="{broken").status_code == 400
    answer = fork(before="3", key="0 search", result='["one <b>document</b>"]')
    assert answer.status_code == 303, answer.text
    forked = answer.headers["location"].rpartition("/")[2]
    until_status(client, forked, "completed")
    page = client.get(f"/_durable/console/runs/{forked}").text
    assert f'Forked from <a href="{base}">' in page
    compared = client.get(f"/_durable/console/runs/{forked}/compare").text
    assert "fork: document 0" in compared
    assert "one &lt;b&gt;document&lt;/b&gt;" in compared
    assert compared.count('class="differs"') >= 2
    assert client.get(f"{base}/compare").status_code == 404
    assert f"begun: {forked}" in client.get("/_durable/console/activity").text


def test_labels_are_shown_and_looked_for(client: httpx.Client) -> None:
    mine = ended(client, "/labelled", json={"tenant": "acme, eu", "seats": 3})
    other = ended(client, "/labelled", json={"tenant": "acme"})
    assert client.get(f"/_durable/runs/{mine}").json()["labels"] == {
        "seats": "3", "tenant": "acme, eu",
    }  # fmt: skip

    def listed(**params: Any) -> list[str]:
        rows = client.get("/_durable/runs", params=params).raise_for_status().json()["runs"]
        return [row["id"] for row in rows]

    assert listed(label="tenant:acme, eu") == [mine]
    assert listed(label=["seats:3", "tenant:acme, eu"]) == [mine]
    assert listed(label=["seats:3", "tenant:acme"]) == []
    refused = client.get("/_durable/runs", params={"label": "acme"})
    assert (refused.status_code, refused.json()["detail"].partition(",")[0]) == (
        400, "give a label as name:value",
    )  # fmt: skip

    def page(**params: str) -> set[str]:
        text = client.get("/_durable/", params=params).raise_for_status().text
        return {run_id for run_id in (mine, other) if f'id="r-{run_id}"' in text}

    assert page(label="tenant:acme, eu") == {mine}
    assert page(label="tenant:acme") == {other}
    assert page(label="acme") == page(q="tenant:ACME") == {mine, other}
    assert page(label="seats:4") == set()
    shown = client.get(f"/_durable/console/runs/{mine}").text
    assert 'href="/_durable/?label=tenant%3Aacme%2C+eu"' in shown
    exported = client.get(f"/_durable/console/runs/{mine}/journal.json").json()
    assert exported["run"]["labels"] == '{"seats":"3","tenant":"acme, eu"}'


def test_tokens_and_what_they_cost(client: httpx.Client) -> None:
    run_id = ended(client, "/models", json=["tiny-1", "tiny-1", "other", "silent"])
    usage = client.get(f"/_durable/runs/{run_id}/usage").json()
    tiny = {"calls": 2, "input": 2400, "cached": 400, "output": 690, "reasoning": 0}
    cost = (2400 * 2 + 690 * 10) / 1e6
    assert usage["models"]["tiny-1"] == {**tiny, "cost": pytest.approx(cost)}
    assert usage["models"]["other"]["cost"] is None
    assert (usage["unknown"], usage["total"]["calls"]) == (1, 3)
    assert usage["total"]["cost"] == pytest.approx(cost)
    for _ in range(2):  # read once, and then only continued
        shown = client.get(f"/_durable/console/runs/{run_id}").text
        assert '<td class="num">2,400</td>' in shown
        assert f"{cost:.6f}" in shown
        assert "no price" in shown
        assert "1 answer said nothing of tokens" in shown
    assert "Tokens" not in client.get(f"/_durable/console/runs/{ended(client, '/ask')}").text
    unknown = run_id[:-1] + ("1" if run_id[-1] == "0" else "0")
    assert client.get(f"/_durable/runs/{unknown}/usage").status_code == 404


def test_who_did_it_stays_in_the_journal(client: httpx.Client) -> None:
    run_id = waiting(client, "/webhook")
    answered = send(client, run_id, "signal", wait="payment", data='{"paid": true}')
    assert answered.status_code == 303
    until_status(client, run_id, "completed")
    page = client.get(f"/_durable/console/runs/{run_id}").text
    assert "the signal payment arrived from 127.0.0.1" in page
    stopped = waiting(client, "/sleepy")
    assert send(client, stopped, "cancel").status_code == 303
    until_status(client, stopped, "cancelled")
    page = client.get(f"/_durable/console/runs/{stopped}").text
    assert "127.0.0.1 asked for the run to be cancelled" in page


def test_how_commits_go(client: httpx.Client) -> None:
    ended(client, "/ask")
    page = client.get("/_durable/console/health").text
    for title in ("A commit takes", "Slowest 1 % of commits", "Entries of a commit",
                  "Not yet durable", "Durable late by", "Retries"):  # fmt: skip
        assert title in page
    assert "<h2>Nodes</h2>" not in page  # one process owns the file
    metrics = client.get("/_durable/metrics").text
    assert 'durable_runs_stored{status="suspended"}' in metrics
    assert 'durable_commit_seconds_bucket{le="+Inf"}' in metrics
