"""The engine's suite, and a part of the surface's, over PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from durable_endpoints.links import new_secret
from durable_endpoints.stores.postgres_link import Address
from tests.support.server import ROOT

ENGINE = ("test_replay", "test_waits", "test_failing", "test_found", "test_deadlines")
SURFACE = ("test_resume", "test_idempotency", "test_suspended", "test_answering")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "files",
    [[f"tests/engine/{name}.py" for name in ENGINE], [f"tests/surface/{n}.py" for n in SURFACE]],
    ids=["engine", "surface"],
)
def test_the_same_suite_over_postgres(postgres: Callable[[], str], files: list[str]) -> None:
    env = {
        **os.environ,
        "TEST_STORE": "postgres",
        "TEST_POSTGRES_URL": Address.parse(postgres()).dsn,
        "TEST_POSTGRES_KEEP": "1",
        "DURABLE_SIGNING_SECRET": new_secret(),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "120", *files]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
