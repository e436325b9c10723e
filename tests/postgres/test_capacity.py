"""Work left by a node is spread: each of the others takes no more than it can run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from durable_endpoints import durable, emit
from durable_endpoints.engine import recovery
from durable_endpoints.stores.protocol import Query
from tests.engine.worlds import PATIENCE_S, World
from tests.postgres.test_remote import gate, gates, open_gate, worlds

LEFT = 60
MOST = 25


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gates.clear()


@durable
async def held(number: int) -> int:
    emit(number)
    await gate("held")
    return number


async def orphans(one: World) -> list[str]:
    """Begin runs on a node, and let it vanish; return their ids."""
    runs = [await one.start(held, number) for number in range(LEFT)]
    one.engine.draining = True
    await one.crash()
    return [run.id for run in runs]


def test_a_node_claims_no_more_than_it_can_run(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RUNS_LIVE_MAX", MOST)
    # Small sets, so that many of them are taken up side by side.
    monkeypatch.setattr(recovery, "RECOVERIES_PARALLEL_MAX", 8)

    async def main() -> None:
        async with worlds(postgres, 3) as (one, two, three):
            most = {two: 0, three: 0}

            async def look() -> None:
                while True:
                    for world in most:
                        most[world] = max(most[world], len(world.engine.runs))
                    await asyncio.sleep(0)

            looking = asyncio.create_task(look())
            ids = await orphans(one)
            await one.store.close()
            async with asyncio.timeout(PATIENCE_S):
                while sum(len(world.engine.runs) for world in most) < 2 * MOST:
                    await asyncio.sleep(0.01)
            # The rest is left where it is until there is room.
            await asyncio.gather(*(world.recovery.sweep() for world in most for _ in range(4)))
            assert most == {two: MOST, three: MOST}
            rows = await two.store.list(Query(("running",), unowned=True, limit=99))
            assert len(rows) == LEFT - MOST  # its own are among them
            open_gate("held")
            for run_id in ids:
                assert (await two.ended(run_id)).status == "completed"
            assert max(most.values()) == MOST
            looking.cancel()
            await one.boot()

    asyncio.run(main())


def test_sets_that_are_taken_up_side_by_side_fill_a_node_once(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RUNS_LIVE_MAX", MOST)

    async def main() -> None:
        async with worlds(postgres, 2) as (one, two):
            two.engine.leaving = True  # it takes none by itself
            ids = await orphans(one)
            await one.store.close()
            two.engine.leaving = False
            rows = [row for run_id in ids if (row := await two.store.get(run_id)) is not None]
            sets = [rows[at : at + 10] for at in range(0, LEFT, 10)]
            await asyncio.gather(*(two.recovery._take(some) for some in sets))
            assert len(two.engine.runs) == MOST
            open_gate("held")
            for run_id in ids[:MOST]:
                await two.engine.runs[run_id].durable(0) if run_id in two.engine.runs else None
            await one.boot()

    asyncio.run(main())
