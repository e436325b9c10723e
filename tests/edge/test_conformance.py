"""The suite of all stores, over an edge store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import test_store, test_waiting
from tests.conformance.made import Check
from tests.edge.conftest import on_an_edge

for module in (test_store, test_waiting):
    globals().update({name: it for name, it in vars(module).items() if name.startswith("test_")})


@pytest.fixture
def without_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setattr("durable_endpoints.limits.EDGE_OPEN_S", 0.05)
    monkeypatch.setattr("durable_endpoints.limits.EDGE_LEAVE_S", 0.05)
    return on_an_edge(tmp_path, "postgresql://nobody@127.0.0.1:1/none")


def test_i17_attempts_count_at_the_claim_and_progress_forgives(without_centre: Check) -> None:
    """Where there is a centre, what is released is the centre's."""
    test_store.test_i17_attempts_count_at_the_claim_and_progress_forgives(without_centre)
