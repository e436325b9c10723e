"""The examples and the demo as their users run them: real processes, real sockets, real kills."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.example_processes import EXAMPLES, Model, Process, Serve
from tests.support.server import free_port


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve an example with `durable run`, its files in a directory of the test's own."""
    started: list[Process] = []

    def start(app: str, *options: str, folder: Path = EXAMPLES, **env: str) -> Process:
        port = free_port()
        command = [
            sys.executable, "-c", "from durable_endpoints.cli import main; main()", "run", app,
            "--port", str(port), "--app-dir", str(folder), *options,
        ]  # fmt: skip
        process = Process(
            command, port, tmp_path / f"server{len(started)}.log", cwd=tmp_path,
            env={"CHAT_MEMORY": str(tmp_path / "memory.db"), **env}, ready="/_durable/health",
        )  # fmt: skip
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    """The scripted model as a server."""
    model = Model(tmp_path)
    model.start()
    yield model
    model.stop()
