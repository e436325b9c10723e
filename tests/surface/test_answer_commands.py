"""`durable signal`, `retry`, `dead` and `approvals` against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from durable_endpoints.cli.commands import cli
from tests.support.server import Server
from tests.surface.waiters import NOBODY, accepted, link_of, response_of, waiting
from tests.surface.wire import noted, until_noted, until_status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("commands")) as server:
        yield server


def durable(server: Server, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--url", server.url], input=stdin)


def dead(client: httpx.Client, what: str) -> str:
    run_id = accepted(client, "/gives-up", params={"what": what})
    until_status(client, run_id, "dead")
    return run_id


def test_nobody_is_asked_anything(server: Server) -> None:
    assert durable(server, "approvals").output == "Nobody is asked anything.\n"


def test_signal(server: Server, client: httpx.Client) -> None:
    run_id = waiting(client, "/json", params={"once": True, "then": "end"})
    taken = durable(server, "signal", run_id[-8:], "go", '{"ok": true}', "--id", "a")
    assert (taken.exit_code, taken.output) == (0, "taken: the run goes on\n")
    again = durable(server, "signal", run_id, "go", '{"ok": true}', "--id", "a")
    assert again.output.startswith("known")
    other = durable(server, "signal", run_id, "go", '{"ok": false}')
    assert other.exit_code == 1
    assert "Not taken: the wait for 'go' was answered before." in other.output
    assert '{"ok":true}' in other.output
    assert durable(server, "signal", run_id, "other", "1").output.startswith("kept")
    assert durable(server, "signal", run_id, "end", "-", stdin="[1]").output.startswith("taken")
    assert response_of(client, run_id) == {"got": {"ok": True}}
    late = durable(server, "signal", run_id, "third")
    assert late.exit_code == 1
    assert "completed" in late.output
    unknown = durable(server, "signal", NOBODY, "go")
    assert f"There is no run {NOBODY}" in unknown.output


def test_runs_and_show_say_what_is_waited_for(server: Server, client: httpx.Client) -> None:
    run_id = waiting(client, "/approval", json={"timeout": 7200, "summary": "Sure?"})
    until_status(client, run_id, "suspended")
    assert "approval refund, 1 h 59 min left" in durable(server, "runs").output
    shown = durable(server, "show", run_id).output
    for part in ("● suspended", "waits for", "approval refund", "wakes", "approval:refund"):
        assert part in shown, shown
    found = json.loads(durable(server, "runs", "--json", "-n", "1").output)
    assert found["waiting"][0]["name"] == "refund"


def test_approvals(server: Server, client: httpx.Client) -> None:
    runs = [waiting(client, "/approval", json={"name": f"a{n}", "summary": "Sure?"})
            for n in range(3)]  # fmt: skip
    decision = waiting(client, "/escalates", params={"claim": "cli"})
    shown = durable(server, "approvals").output
    for part in (*runs, "Sure?", decision, "judge", "A decision is a signal"):
        assert part in shown, shown
    lines = durable(server, "approvals", "--json").output.splitlines()
    assert {json.loads(line)["run_id"] for line in lines} >= set(runs)
    yes = durable(server, "approvals", "approve", runs[0][-10:], "--by", "ann", "--comment", "ok")
    assert (yes.exit_code, yes.output) == (0, "Approved by ann.\n")
    decided = response_of(client, runs[0])
    assert (decided["approved"], decided["by"], decided["comment"]) == (True, "ann", "ok")
    link = link_of(client, runs[1])
    no = durable(server, "approvals", "decline", link, "--by", "bob")
    assert no.output == "Declined by bob.\n"
    assert response_of(client, runs[1])["approved"] is False
    late = durable(server, "approvals", "approve", server.url + link)
    assert late.exit_code == 1
    assert "was answered before" in late.output
    assert "by bob" in late.output
    gone = durable(server, "approvals", "approve", runs[0])
    assert "No open approval matches" in gone.output
    assert "See them with: durable approvals" in gone.output
    several = durable(server, "approvals", "approve", runs[2][:4])
    assert "open approvals match" in several.output
    bent = durable(server, "approvals", "approve", link[:-1])
    assert "This is no link of" in bent.output
    answer = '{"action": "result", "result": "just"}'
    assert durable(server, "signal", decision, "judge", answer).output.startswith("taken")
    assert response_of(client, decision) == {"verdict": "just"}


def test_dead_runs(server: Server, client: httpx.Client, directory: Path) -> None:
    assert durable(server, "dead").output == "No dead runs.\n"
    assert durable(server, "dead", "retry", "--all").output == "No dead runs.\n"
    assert durable(server, "dead", "drop", "--all").output == "No dead runs.\n"
    runs = [dead(client, f"cli-{n}") for n in range(4)]
    listed = durable(server, "dead").output
    assert all(run_id in listed for run_id in runs)
    assert "ConnectionError: the upstream is away" in listed
    assert len(durable(server, "dead", "list", "--json").output.splitlines()) == 4
    shown = durable(server, "dead", "show", runs[0]).output
    for part in ("● dead", "ConnectionError", "fetch", "2 tries", "failed"):
        assert part in shown, shown
    (directory / "mended-cli-0").touch()
    assert "completed" in durable(server, "retry", runs[0][-8:]).output
    assert noted(directory, "first cli-0") == 1
    refused = durable(server, "retry", runs[0])
    assert refused.exit_code == 1
    assert "only dead and diverged runs are retried" in refused.output
    assert "is not dead" in durable(server, "dead", "drop", runs[0]).output
    assert "cancelled" in durable(server, "dead", "drop", runs[1]).output
    (directory / "mended-cli-2").touch()
    none = durable(server, "dead", "retry", "--all", "--name", "POST /nothing")
    assert none.output == "No dead runs.\n"
    retried = durable(server, "dead", "retry", "--all", "--name", "POST /gives-up").output
    assert retried.splitlines()[-1] == "2 dead runs go on."
    until_status(client, runs[2], "completed")
    until_noted(directory, "fetch cli-3", times=4)
    until_status(client, runs[3], "dead")
    kept = durable(server, "dead", "drop", "--all", stdin="n\n")
    assert "Cancel 1 dead runs?" in kept.output
    assert kept.exit_code == 1
    dropped = durable(server, "dead", "drop", "--all", "--yes").output
    assert runs[3] in dropped
    assert "cancelled" in dropped
    assert durable(server, "dead").output == "No dead runs.\n"
