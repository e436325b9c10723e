"""Clients from npm through a kill -9: they come back by themselves, to the exact transcript."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.apps.streams import text_of
from tests.support.log import final_log, the_run
from tests.support.server import ROOT, Server

HERE = Path(__file__).parent
CLIENT_JS = ROOT / "durable_endpoints" / "asgi" / "client.js"
NODE, NPM = shutil.which("node"), shutil.which("npm")
WAIT_S = 60

pytestmark = [
    pytest.mark.node,
    pytest.mark.crash,
    pytest.mark.skipif(NODE is None or NPM is None, reason="needs node and npm on the PATH"),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts beside the packages that the lock file pins."""
    directory = tmp_path_factory.mktemp("node")
    for file in HERE.iterdir():
        if file.suffix in {".json", ".mjs"}:
            shutil.copy(file, directory)
    done = subprocess.run(
        [str(NPM), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=directory, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"npm ci failed:\n{done.stdout}\n{done.stderr}"
    return directory


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server("tests.apps.streams:app", tmp_path) as server:
        yield server


class Script:
    """A node process and the JSON lines that it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self._output = process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._output is not None
        for line in self._output:
            self.lines.put(line)

    def wait(self) -> None:
        """Wait for the end of the output: nobody may close it under who reads it."""
        self._reader.join(WAIT_S)

    def take(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(self.lines.get(timeout=WAIT_S)) for _ in range(count)]

    def rest(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The events up to the end, and what was said at the end."""
        events: list[dict[str, Any]] = []
        while "end" not in (line := self.take(1)[0]):
            events.append(line)
        return events, line


@contextmanager
def node(scripts: Path, name: str, *arguments: str) -> Iterator[Script]:
    process = subprocess.Popen(
        [str(NODE), name, *arguments],
        cwd=scripts, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    with process:
        script = Script(process)
        try:
            yield script
        finally:
            process.kill()
            script.wait()


def log(server: Server, *, control: bool = False) -> list[dict[str, Any]]:
    found = final_log(server, the_run(server), control=control)
    return [dict(zip(("type", "data", "id"), event, strict=True)) for event in found]


def test_eventsource(scripts: Path, server: Server) -> None:
    url = f"{server.url}/chat?n=40&hold=25&pause_ms=2"
    with node(scripts, "eventsource.mjs", url) as script:
        events = script.take(25)
        server.restart()
        (server.directory / "release").touch()
        rest, end = script.rest()
    assert events + rest == log(server)
    assert [event["data"] for event in events + rest] == [text_of(n) for n in range(40)]
    assert end == {"end": 204}


def test_fetch_event_source(scripts: Path, server: Server) -> None:
    body = json.dumps({"n": 40, "hold": 25, "pause_ms": 2})
    with node(scripts, "fetch-event-source.mjs", f"{server.url}/chat", body) as script:
        events = script.take(25)
        server.restart()
        (server.directory / "release").touch()
        rest, end = script.rest()
    assert events + rest == log(server)
    assert [event["data"] for event in events + rest] == [text_of(n) for n in range(40)]
    assert end["end"] >= 2


def test_our_own(scripts: Path, server: Server) -> None:
    body = json.dumps({"n": 10, "hold": 6})
    with node(scripts, "client.mjs", server.url, "/again", body, str(CLIENT_JS)) as script:
        events = script.take(7)
        server.restart()
        (server.directory / "release").touch()
        rest, end = script.rest()
    assert events + rest == log(server, control=True)
    assert end["end"] == ["connecting", "streaming", "reconnecting", "streaming", "done"]
    assert end["text"] == "before " + "".join(f"[2.{n}]" for n in range(10)) + " after"
