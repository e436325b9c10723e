"""What every fault test leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.process import kill_all


@pytest.fixture(autouse=True)
def _no_server_left() -> Iterator[None]:
    yield
    kill_all()
