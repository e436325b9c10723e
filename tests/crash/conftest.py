"""Options of the crash tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.process import kill_all


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--crash-kills", type=int, default=40, help="random kills (default 40)")
    parser.addoption("--crash-seed", type=int, default=None, help="seed of the random kills")


@pytest.fixture(autouse=True)
def _no_server_left() -> Iterator[None]:
    yield
    kill_all()
