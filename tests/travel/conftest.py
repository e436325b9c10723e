"""A server that has served some runs of every kind, and the command line beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from durable_endpoints.cli.commands import cli
from tests.engine.worlds import PATIENCE_S
from tests.support.server import Server

APP = "shop:app"
HERE = Path(__file__).parent
Durable = Callable[..., Result]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("travel")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with Server(APP, directory, env={"PYTHONPATH": str(HERE)}) as server:
        yield server


@pytest.fixture(scope="module")
def runs(server: Server) -> dict[str, str]:
    """Run ids by what they are."""
    found: dict[str, str] = {}
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def begin(name: str, method: str, path: str) -> None:
            answer = client.request(method, path, headers={"Prefer": "respond-async"})
            found[name] = answer.headers["durable-run-id"]

        begin("buy", "POST", "/buy?item=tea")
        begin("chat", "GET", "/chat?n=3")
        begin("side", "POST", "/side")
        wait_for(client, found["side"], None)
        begin("bad", "POST", "/bad")
        begin("dead", "POST", "/dead")
        begin("waiting", "POST", "/wait?item=tea")
        begin("waited", "POST", "/wait?item=tea")
        client.post(f"/_durable/runs/{found['waited']}/signals/ok", json=1).raise_for_status()
        wait_for(client, found["waited"], "approval")
        (asked,) = [
            one for one in client.get("/_durable/approvals").json()["approvals"]
            if one["run_id"] == found["waited"]
        ]  # fmt: skip
        client.post(asked["link"], json={"approved": True}).raise_for_status()
        begin("cancelled", "POST", "/wait?item=coffee")
        wait_for(client, found["cancelled"], "signal")
        client.post(f"/_durable/runs/{found['cancelled']}/cancel").raise_for_status()
        wait_for(client, found["waiting"], "signal")
        for name in ("buy", "chat", "side", "bad", "dead", "waited", "cancelled"):
            wait_for(client, found[name], None)
    return found


def wait_for(client: httpx.Client, run_id: str, waits: str | None) -> None:
    """Wait until a run has ended, or waits for something of a kind."""
    until = time.monotonic() + PATIENCE_S
    while True:
        run = client.get(f"/_durable/runs/{run_id}").json()
        kinds = [wait["kind"] for wait in run["waiting"] or ()]
        if run["ended"] if waits is None else waits in kinds:
            return
        assert time.monotonic() < until, run
        time.sleep(0.005)


@pytest.fixture
def durable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Durable:
    """Run a command in the server's directory, with the app as `change` would have it."""
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: str, change: str = "") -> Result:
        monkeypatch.setenv("SHOP", change)
        return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)

    return call
