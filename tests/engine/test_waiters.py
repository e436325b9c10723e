"""Who waits for a run to get further, and who does no longer."""

from __future__ import annotations

import asyncio

from durable_endpoints import durable, wait_for_signal
from durable_endpoints.engine.reader import Reader
from tests.engine.worlds import World, play

TIMES = 1000


@durable
async def quiet() -> None:
    await wait_for_signal("go")


def test_i23_who_has_stopped_waiting_leaves_nothing_behind() -> None:
    """Each heartbeat of a reader ends a wait, and each reader that leaves."""

    async def main(one: World) -> None:
        run = await one.start(quiet)
        live = await one.engine.observe(run.id)
        await live.durable(live.seq - 1)
        await one.idle()
        reader = Reader(one.store, live)
        for _ in range(TIMES):
            assert not await reader.moved(0)
        for _ in range(TIMES):
            leaving = asyncio.create_task(reader.moved())
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
        staying = [asyncio.create_task(reader.moved()) for _ in range(TIMES // 5)]
        await asyncio.sleep(0)
        assert len(live._waiters) < TIMES / 2
        live.wake()
        assert await asyncio.gather(*staying) == [True] * len(staying)

    play(main)
