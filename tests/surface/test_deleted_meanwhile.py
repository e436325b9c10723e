"""A run is deleted between two looks at its journal: no answer makes a whole of a part (I5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.errors import StreamAborted
from durable_endpoints.limits import READ_BYTES_MAX
from durable_endpoints.testing.lifespan import lifespan
from tests.support.vanishing import Vanishing

PIECE = b"x" * 200_000
PIECES = 4 * READ_BYTES_MAX // len(PIECE)


@durable
async def bulk() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(PIECES):
            yield PIECE
            await asyncio.sleep(0.002)  # a frame each

    return StreamingResponse(body(), media_type="text/plain")


@asynccontextmanager
async def looked_at(*, found: bool = False) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """Give a client and a finished run, which is deleted when it is looked for, or was `found`."""
    store = Vanishing()
    app = FastAPI()
    app.post("/bulk")(bulk)
    app.add_middleware(DurableMiddleware, store=store)
    async with (
        lifespan(app, app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http,
    ):
        answer = await http.post("/bulk")
        assert len(answer.content) == PIECES * len(PIECE)
        run_id = answer.headers["durable-run-id"]
        before = store.looks
        assert (await http.get(f"/_durable/runs/{run_id}")).status_code == 200
        if found:
            store.spared = store.looks + (store.looks - before) - 1
        store.doomed = run_id
        yield http, run_id


@pytest.mark.parametrize(
    "path",
    ["runs/{}/response", "runs/{}/stream", "runs/{}/journal", "runs/{}/usage",
     "console/runs/{}/request"],
)  # fmt: skip
def test_i20_it_is_gone_and_not_damaged(path: str) -> None:
    async def main() -> None:
        async with looked_at() as (http, run_id):
            answer = await http.get(f"/_durable/{path.format(run_id)}")
            assert answer.status_code == 410, answer.text

    asyncio.run(main())


def test_i5_a_download_of_a_part_does_not_end_as_a_whole() -> None:
    async def main() -> None:
        async with looked_at() as (http, run_id):
            with pytest.raises(StreamAborted):
                await http.get(f"/_durable/console/runs/{run_id}/journal.json")

    asyncio.run(main())


@pytest.mark.parametrize("cursor", ["7", "an-id-of-the-app"])
def test_a_cursor_is_not_blamed_for_it(cursor: str) -> None:
    async def main() -> None:
        async with looked_at(found=True) as (http, run_id):
            answer = await http.get(f"/_durable/runs/{run_id}/stream", params={"after": cursor})
            assert answer.status_code == 410, answer.text

    asyncio.run(main())
