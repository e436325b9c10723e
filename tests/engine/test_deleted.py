"""A run is deleted while somebody reads it: nobody takes that for its end (I5, I21)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from durable_endpoints import (
    RunDeleted,
    RunNotFound,
    current_run,
    durable,
    emit,
    wait_for_signal,
)
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run
from durable_endpoints.engine.reader import Reader, read_journal
from durable_endpoints.errors import Corrupt
from durable_endpoints.ids import new_run_id
from durable_endpoints.limits import CHILD_RECHECK_S, READ_BYTES_MAX
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query
from durable_endpoints.testing import TestClock
from tests.engine.giving_up import gives_up
from tests.engine.worlds import World, play, world
from tests.support.vanishing import Vanishing

PIECE = "x" * 200_000
PIECES = 4 * READ_BYTES_MAX // len(PIECE)


async def speak(one: World) -> Run:
    """Return a finished run whose journal takes several reads of the store."""

    @durable
    async def speaks() -> None:
        for _ in range(PIECES):
            emit(PIECE)
            await one.idle()  # a frame each

    run = await one.start(speaks)
    await run.result()
    return run


async def read_some(one: World) -> Reader:
    """Return a reader in the middle of a finished run, of which memory has no more than the end."""

    run = await speak(one)
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


def doom(scenario: Callable[[World, Run], Awaitable[None]]) -> None:
    """Play a scenario with a finished run that is deleted as soon as its journal is looked at."""

    async def main() -> None:
        store = Vanishing()
        async with world(store) as one:
            run = await speak(one)
            while run.id in one.engine.runs:
                await one.idle()
            store.doomed = run.id
            await scenario(one, run)

    asyncio.run(main())


def test_who_signals_a_run_that_is_deleted_meanwhile_is_told_that_it_is_gone() -> None:
    """Whether it had the signal before it ended cannot be seen any more."""

    async def scenario(one: World, run: Run) -> None:
        with pytest.raises(RunDeleted):
            await run.signal("go on")

    doom(scenario)


def test_i20_a_run_that_is_deleted_while_it_is_looked_for_is_not_taken_for_damaged() -> None:
    async def scenario(one: World, run: Run) -> None:
        with pytest.raises(RunDeleted):
            await one.engine.observe(run.id)

    doom(scenario)


def test_i18_who_looks_for_anothers_run_is_not_told_that_it_was_deleted_meanwhile() -> None:
    async def scenario(one: World, run: Run) -> None:
        with pytest.raises(RunNotFound) as told:
            await one.engine.observe(run.id, "somebody else")
        assert type(told.value) is RunNotFound

    doom(scenario)


def test_i5_a_journal_of_which_the_rest_was_deleted_is_not_read_as_a_whole() -> None:
    async def scenario(one: World, run: Run) -> None:
        with pytest.raises(RunDeleted):
            await run.journal()

    doom(scenario)


def test_the_result_of_a_run_that_was_deleted_says_so() -> None:
    async def scenario(one: World, run: Run) -> None:
        assert await run.result() is None
        with pytest.raises(RunDeleted):
            await run.result()

    doom(scenario)


def test_i20_a_journal_that_lacks_its_end_is_damaged() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with world(store) as one:
            run = await speak(one)
            record = await store.get(run.id)
            assert record is not None
            store._frames[run.id].pop()
            with pytest.raises(Corrupt, match=f"entries from {record.last_seq} on are missing"):
                await read_journal(store, run.id, last=record.last_seq)

    asyncio.run(main())


def test_a_run_that_is_gone_already_needs_no_replacing() -> None:
    async def scenario(one: World, run: Run) -> None:
        await one.engine.conflicts.replace(run.id, None)
        assert await one.store.get(run.id) is None

    doom(scenario)


def test_looks_for_runs_that_nobody_has_leave_nothing_in_memory() -> None:
    async def scenario(one: World) -> None:
        for number in range(100):
            with pytest.raises(RunNotFound):
                await one.engine.observe(new_run_id(number))
        assert not one.engine._loads

    play(scenario)


@durable
async def succeeds() -> str:
    return "done"


@durable
async def begins(child: str) -> str:
    run = await current_run().spawn({"succeeds": succeeds, "gives up": gives_up}[child])
    await wait_for_signal("go on")
    try:
        return str(await run)
    except RunDeleted as error:
        return f"{error} is gone"


async def child_of(one: World, parent: Run) -> str:
    """Return the id of a run's child, which is at its end."""
    while True:
        rows = await one.store.list(Query(("completed", "dead"), parent=parent.id))
        if rows and rows[0].run_id not in one.engine.runs:
            return rows[0].run_id
        await one.idle()


async def drop(one: World, run_id: str) -> None:
    assert await one.engine.delete(await one.engine.observe(run_id))


def test_who_waits_for_a_child_that_was_deleted_is_told_so() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(begins, "succeeds")
        child_id = await child_of(one, run)
        await drop(one, child_id)
        await run.signal("go on")
        assert await run.result() == f"{child_id} is gone"

    play(scenario)


def test_i16_who_waits_for_a_dead_child_is_told_when_it_is_deleted() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(begins, "gives up")
        child_id = await child_of(one, run)
        await run.signal("go on")
        parent = one.engine.runs[run.id]
        while not any(wait.kind == "child" for wait in parent.waits.open.values()):
            await one.idle()
        while one.engine.waking.busy:  # looking whether the child has ended
            await one.idle()
        await drop(one, child_id)
        assert await run.result() == f"{child_id} is gone"

    play(scenario)


def test_i16_a_suspended_run_learns_that_its_dead_child_was_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = TestClock()
    monkeypatch.setattr("tests.engine.worlds.Engine", partial(Engine, clock=clock))

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(begins, "gives up")
        child_id = await child_of(one, run)
        await run.signal("go on")
        while True:
            record = await one.store.get(run.id)
            assert record is not None
            if child_id in (record.waiting or "") and run.id not in one.engine.runs:
                break
            await one.idle()
        await drop(one, child_id)
        clock.advance(seconds=CHILD_RECHECK_S)
        assert await (await one.ended_for_good(run.id)).result() == f"{child_id} is gone"

    play(scenario)
