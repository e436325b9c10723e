"""One server for a module's tests, and a client of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server

APP = "tests.apps.surface:app"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(APP, tmp_path_factory.mktemp("surface")) as server:
        yield server


@pytest.fixture
def directory(server: Server) -> Path:
    return server.directory


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own, with another stack or other options."""
    started: list[Server] = []

    def start(options: tuple[str, ...] = (), **env: str) -> Server:
        server = Server(APP, tmp_path, env=env, options=options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        if server.running:
            server.kill()


@pytest.fixture
def serve_waiting(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the test's own with the app of runs that wait."""
    started: list[Server] = []

    def start(options: tuple[str, ...] = (), **env: str) -> Server:
        server = Server("tests.apps.waiting:app", tmp_path, env=env, options=options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        if server.running:
            server.kill()
