"""The stores under the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_endpoints.stores.open import open_store
from tests.conformance.made import Check, played


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Play a scenario on a store."""
    address = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/d.db"}.get(request.param)
    if address is None:
        address = request.getfixturevalue("postgres")()
    return lambda scenario: played(open_store(address), scenario)
