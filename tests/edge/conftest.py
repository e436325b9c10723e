"""Edge stores, and the suite of all stores over one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_endpoints import EdgeStore
from tests.conformance.made import Check, Scenario


def played(place: Path, centre: str) -> Check:
    """Return what plays a scenario on an edge store, which hands nothing over by itself."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store = EdgeStore(f"sqlite:///{place}/d.db", centre, hand_over_after=math.inf)
            await store.open()
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run


@pytest.fixture
def check(postgres: Callable[[], str], tmp_path: Path) -> Check:
    """Play a scenario on an edge store that ships meanwhile."""
    return played(tmp_path, postgres())
