"""The store under the suite: TEST_STORE is "memory" (the default), "sqlite" or "postgres"."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from durable_endpoints.stores.open import open_store
from durable_endpoints.stores.protocol import Store
from tests.engine import worlds

STORE = os.environ.get("TEST_STORE", "memory")


@pytest.fixture(autouse=True)
def _store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter[str]()

    def new_store() -> Store:
        made["store"] += 1
        if STORE == "postgres":
            return open_store(request.getfixturevalue("postgres")())
        return open_store(f"sqlite:///{tmp_path}/{made['store']}.db")

    if STORE != "memory":
        monkeypatch.setattr(worlds, "new_store", new_store)
