"""Edge stores, and the suite of all stores over one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_endpoints import EdgeStore
from tests.conformance.made import Check, played


def on_an_edge(place: Path, centre: str) -> Check:
    """Return what plays a scenario on an edge store, which hands nothing over by itself."""
    address = f"sqlite:///{place}/d.db"
    return lambda scenario: played(EdgeStore(address, centre, hand_over_after=math.inf), scenario)


@pytest.fixture
def check(postgres: Callable[[], str], tmp_path: Path) -> Check:
    """Play a scenario on an edge store that ships meanwhile."""
    return on_an_edge(tmp_path, postgres())
