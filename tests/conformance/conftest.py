"""The stores under the suite."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from durable_endpoints.stores.open import open_store
from tests.conformance.made import Check, Scenario


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Play a scenario on a store that is opened for it and closed after it."""
    address = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/d.db"}.get(request.param)
    if address is None:
        address = request.getfixturevalue("postgres")()

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store = open_store(address)
            await store.open()
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run
