"""I19: what names a secret, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from durable_endpoints import step
from durable_endpoints.engine.steps import hash_args
from durable_endpoints.redact import is_secret, names_secret


@pytest.mark.parametrize(
    "name",
    ["Authorization", "cookie", "set-cookie", "X-Api-Key", "api_key", "access_token", "password",
     "client_secret", "x-csrf-token", "proxy-authorization"],
)  # fmt: skip
def test_secrets(name: str) -> None:
    assert is_secret(name)
    assert names_secret(b'[{"' + name.encode() + b'":"x"}]')


@pytest.mark.parametrize(
    "name", ["accept", "max_tokens", "author", "x-request-id", "cookies_eaten"]
)
def test_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_arguments_that_hold_secrets_are_hashed_and_not_kept() -> None:
    @step
    async def login(user: str, password: str) -> None: ...

    @step
    async def search(query: Any) -> None: ...

    keeps, hides = search.durable_step, login.durable_step  # type: ignore[attr-defined]
    assert hash_args(hides, ("ann", "hunter2"), {})[1] == b""
    assert hash_args(hides, ("ann", "hunter2"), {})[0] != 0
    assert hash_args(keeps, ({"nested": {"password": "x"}},), {})[1] == b""
    assert hash_args(keeps, ("why",), {}) == (hash_args(keeps, ("why",), {})[0], b'["why"]')
