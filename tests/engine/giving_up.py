"""A run that dies of its first step."""

from __future__ import annotations

from durable_endpoints import Retry, durable, step


@step(retry=Retry(attempts=1))
async def fail() -> None:
    raise ConnectionError("gone")


@durable
async def gives_up() -> None:
    await fail()
