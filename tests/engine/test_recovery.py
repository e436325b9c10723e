"""Who takes runs up, drops and deletes them, and what becomes of their readers."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints import durable, step, wait_for_signal
from durable_endpoints.errors import Fenced, RunDeleted
from tests.engine.giving_up import gives_up
from tests.engine.worlds import PATIENCE_S, World, world


def test_i17_what_a_suspect_makes_of_an_answer_is_part_of_its_trial() -> None:
    """Somebody is there to answer it: the next suspect is not, should it end the process then."""
    order: list[str] = []
    free = asyncio.Event()

    async def scenario(one: World) -> None:
        async def act() -> None:
            order.append("the next one")
            await free.wait()

        @durable
        async def asks() -> None:
            await wait_for_signal("go")

        @durable
        async def acts() -> None:
            await step.run("act", act)

        asked, acted = await one.start(asks), await one.start(acts)
        while not order or len(await one.entries(asked.id)) < 2:
            await asyncio.sleep(0.001)
        await one.crash()
        now_ms = one.engine.clock.now_ms()
        # By processes that came to nothing, not long ago; the most suspect one is tried last.
        assert len(await one.store.claim([asked.id, acted.id], now_ms - 800)) == 2
        assert len(await one.store.claim([acted.id], now_ms - 3800)) == 1
        order.clear()
        await one.boot()
        async with one.engine.waking.held(await one.engine.observe(asked.id)) as live:
            assert live.waits.open
            await asyncio.sleep(0.3)  # its time to answer: the next one would come at once
            order.append("the answer")
        while "the next one" not in order:
            await asyncio.sleep(0.001)
        free.set()
        await one.ended_for_good(acted.id)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), world() as one:
            await scenario(one)

    asyncio.run(main())
    assert order == ["the answer", "the next one"]


def test_a_reader_hears_of_the_end_that_another_process_wrote() -> None:
    """One that should be gone, as its successor is there, and goes on with a run all the same."""

    async def main() -> None:
        go = asyncio.Event()

        @durable
        async def handler() -> str:
            await go.wait()
            return "done"

        async with world() as old, world(old.store) as new:
            run = await old.start(handler)
            reading = asyncio.create_task((await new.run_of(run.id)).result())
            await asyncio.sleep(0)
            go.set()
            assert await run.result() == "done"
            await new.recovery.sweep()
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(Fenced, match="another process"):
                    await reading
            assert await (await new.run_of(run.id)).result() == "done"

    asyncio.run(main())


def test_who_looks_at_a_dead_run_sees_it_dropped_and_deleted() -> None:
    async def main() -> None:
        async with world() as one:
            dead = await one.ended((await one.start(gives_up)).id)
            assert dead.status == "dead"
            await one.crash()
            await one.boot()
            seen, other = [await one.engine.observe(dead.id) for _ in range(2)]
            assert seen is other  # as long as somebody looks
            await one.engine.cancel(seen)
            assert seen.record.status == "cancelled"
            again = await one.ended((await one.start(gives_up)).id)
            seen = await one.engine.observe(again.id)
            assert await one.engine.delete(seen)
            with pytest.raises(RunDeleted):
                await one.engine.observe(again.id)

    asyncio.run(main())
