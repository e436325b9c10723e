"""A run is deleted while somebody reads it: nobody takes that for its end (I5, I21)."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints import RunDeleted, durable, emit
from durable_endpoints.engine.reader import Reader
from durable_endpoints.errors import Corrupt
from durable_endpoints.limits import READ_BYTES_MAX
from durable_endpoints.stores.memory import MemoryStore
from tests.engine.worlds import World, play, world

PIECE = "x" * 200_000
PIECES = 4 * READ_BYTES_MAX // len(PIECE)


async def read_some(one: World) -> Reader:
    """Return a reader in the middle of a finished run, of which memory has no more than the end."""

    @durable
    async def speaks() -> None:
        for _ in range(PIECES):
            emit(PIECE)
            await one.idle()  # a frame each

    run = await one.start(speaks)
    await run.result()
    reader = Reader(one.store, await one.engine.observe(run.id))
    while reader.offset == 0:
        assert await reader.read()
    assert reader.offset < PIECES / 2
    return reader


def test_i5_a_reader_of_a_run_that_is_deleted_is_not_told_an_end() -> None:
    async def scenario(one: World) -> None:
        reader = await read_some(one)
        assert await one.engine.delete(reader.run)
        with pytest.raises(RunDeleted):
            while await reader.read():
                continue
        assert reader.offset < PIECES

    play(scenario)


def test_i20_a_reader_of_a_run_that_has_lost_a_frame_is_not_told_an_end() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with world(store) as one:
            reader = await read_some(one)
            frames = store._frames[reader.run.id]
            lost = next(frame for frame in frames if frame.first_offset > reader.offset)
            frames.remove(lost)
            with pytest.raises(Corrupt, match="are missing"):
                while await reader.read():
                    continue

    asyncio.run(main())
