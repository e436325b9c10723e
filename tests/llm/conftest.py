"""One model provider for all tests of this directory."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llm.lives import LivesServer
from tests.support.server import Server

QUIET = ("--log-level", "critical", "--no-access-log")


class Provider(Server):
    """The provider's process."""

    def __init__(self, directory: Path) -> None:
        super().__init__("tests.llm.provider:app", directory, options=QUIET, health="/health")

    def counted(self) -> list[dict[str, Any]]:
        """Return the requests that came since the last `forget`."""
        with urllib.request.urlopen(self.url + "/counted", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found

    def forget(self) -> None:
        request = urllib.request.Request(self.url + "/counted", method="DELETE")
        urllib.request.urlopen(request, timeout=5).close()


@pytest.fixture(scope="session")
def running_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with Provider(tmp_path_factory.mktemp("provider")) as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    if not running_provider.running:
        running_provider.start()
    running_provider.forget()
    return running_provider


@pytest.fixture(scope="session")
def mcp_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A plain MCP server with all its tools."""
    directory, app = tmp_path_factory.mktemp("mcp"), "tests.llm.mcp_shop:app"
    with LivesServer(app, directory, env={"MORE": "1"}, health="/health") as one:
        yield one


def called(shop: Server) -> list[dict[str, Any]]:
    """Return what was asked of an MCP server's tools since the last time."""
    file = shop.directory / "called.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]
