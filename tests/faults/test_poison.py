"""Runs that take the process with them: their crash loop ends, their neighbours go on (I17)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest

from durable_endpoints.limits import RECOVERIES_MAX
from tests.crash.evidence import read_executions, read_store
from tests.crash.process import CrashServer

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]
POISONED = 13
NEIGHBOURS = ("/json?n=20&ms=200", "/sse?n=20&ms=200", "/tokens/resume?n=20&ms=200")


def begin(url: str, path: str, begun: list[str]) -> None:
    """Begin a run in a thread and stay until it or the server is gone."""

    def read() -> None:
        try:
            headers = {"durable-events": "1", "prefer": "respond-async"}
            response = httpx.post(url + path, headers=headers, timeout=60)
            begun.append(response.headers["durable-run-id"])
        except httpx.TransportError:
            return

    threading.Thread(target=read, daemon=True).start()


@pytest.mark.parametrize("poison", ["/poison", "/poisoned-stream"])
def test_a_poison_run_is_dead_in_the_end_and_its_neighbours_complete(
    poison: str, tmp_path: Path
) -> None:
    server = CrashServer(tmp_path, env={"BACKOFF_S": "0.3"})
    server.start()
    neighbours: list[str] = []
    for path in NEIGHBOURS:
        begin(server.url, path, neighbours)
    until(lambda: len(neighbours) == len(NEIGHBOURS), "the neighbours to begin")
    begin(server.url, poison, [])
    starts = 0
    while server.wait() == POISONED:
        starts += 1
        known = len(read_store(server.store))
        assert starts <= 3 * RECOVERIES_MAX, "the crash loop has no end"
        try:
            server.start()
        except AssertionError as error:  # it was gone again before it was seen to be healthy
            assert "the server ended" in str(error)
            continue
        if known == len(NEIGHBOURS):
            begin(server.url, poison, [])  # it took the process before it was durable
        elif settled(server):
            break
    runs = {run["id"]: run for run in listed(server)}
    [poisoned] = [run for run in runs.values() if run["id"] not in neighbours]
    assert poisoned["status"] == "dead", poisoned
    assert {runs[run_id]["status"] for run_id in neighbours} == {"completed"}, runs
    answer = httpx.get(f"{server.url}/_durable/runs/{poisoned['id']}/response")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.post(f"{server.url}/json?n=2&ms=0").status_code == 200
    server.kill()
    executed = [e for e in read_executions(tmp_path) if e.label == "poison"]
    # A recovery in which one more of its few entries became durable counts anew.
    assert len(executed) <= 3 * RECOVERIES_MAX, f"the poison ran {len(executed)} times"
    assert read_store(server.store)[poisoned["id"]].status == "dead"


def settled(server: CrashServer) -> bool:
    """Wait until the server has ended, or all its runs have; say whether it still lives."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if all(run["status"] != "running" for run in listed(server)):
                return True
        except httpx.TransportError:
            return False
        time.sleep(0.05)
    raise AssertionError(f"runs do not end: {listed(server)}")


def listed(server: CrashServer) -> list[dict[str, str]]:
    runs: list[dict[str, str]] = httpx.get(f"{server.url}/_durable/runs", timeout=30).json()["runs"]
    return runs


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
