"""Two nodes in one process, each with an engine: what one drives, the other reads and asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from durable_endpoints import (
    AlreadyAnswered,
    RunCancelled,
    RunEnded,
    SignalRefused,
    approval,
    current_run,
    durable,
    effect,
    emit,
    sleep,
    wait_for_signal,
)
from durable_endpoints.engine.children import spawn
from durable_endpoints.engine.functions import Run
from durable_endpoints.engine.reader import Reader
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.errors import Fenced
from durable_endpoints.records import Kind
from durable_endpoints.stores.postgres import PostgresStore
from tests.engine.worlds import PATIENCE_S, World
from tests.postgres.test_nodes import execute
from tests.support.gated import asks, counts, gate, gates, open_gate

acted: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gates.clear()
    acted.clear()


class Answer(BaseModel):
    ok: bool


@durable
async def asks_typed() -> Any:
    emit("asked")
    return (await wait_for_signal("go", type=Answer)).ok


@durable
async def child_work() -> str:
    await gate("child")
    return "from the child"


@durable
async def parent_work() -> str:
    scope = SCOPE.get()
    assert scope is not None
    child = await spawn(scope, child_work, (), {})
    emit("begun")
    result: str = await child
    return result


@durable
async def lingers() -> None:
    emit("begun")
    await sleep(60)


@durable
async def acts() -> str:
    emit("begun")
    await gate("acts")
    await effect.run("act", lambda: acted.append(current_run().id))
    return "acted"


@asynccontextmanager
async def worlds(
    postgres: Callable[[], str], count: int = 2, lease_ttl_s: float = 10
) -> AsyncIterator[list[World]]:
    """Open nodes on one schema; a run that waits stays in memory."""
    address = f"{postgres()}&lease_ttl={lease_ttl_s}"
    made = [World(PostgresStore(address)) for _ in range(count)]
    try:
        for one in made:
            await one.boot()
            one.engine.waking.suspend_grace_s = 60
            one.recovery.start()
        yield made
    finally:
        for one in made:
            await one.engine.close()
            assert not one.failures


def play(
    postgres: Callable[[], str], scenario: Callable[[World, World], Awaitable[None]],
    lease_ttl_s: float = 10,
) -> None:  # fmt: skip
    async def main() -> None:
        async with worlds(postgres, 2, lease_ttl_s) as (one, two):
            await scenario(one, two)

    asyncio.run(main())


async def begun(one: World, function: Callable[..., Any], *args: Any) -> str:
    """Begin a run on a node, and wait until it is durably at its first event."""
    run = await one.start(function, *args)
    live = one.engine.runs[run.id]
    async with asyncio.timeout(PATIENCE_S):
        while live.durable_offset == 0 or live.durable_seq < live.seq - 1:
            await live.progress()
    return run.id


async def read_all(world: World, run_id: str) -> list[Any]:
    reader = Reader(world.store, await world.engine.observe(run_id))
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while events := await reader.read():
            found += [data_of(event.payload) for event in events]
    return found


def data_of(block: bytes) -> Any:
    (line,) = [line for line in block.split(b"\n") if line.startswith(b"data: ")]
    text = line.removeprefix(b"data: ").decode()
    return int(text) if text.isdecimal() else text


# --- reading


def test_i4_i5_a_reader_elsewhere_sees_all_events_as_they_come(
    postgres: Callable[[], str],
) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, counts, 200, 100)
        reading = asyncio.create_task(read_all(two, run_id))
        live = await two.engine.observe(run_id)
        async with asyncio.timeout(PATIENCE_S):
            while live.durable_offset < 100:
                await live.progress()
        assert not reading.done()
        open_gate("counts")
        assert await reading == list(range(200))
        here = await one.engine.observe(run_id)
        there = await two.engine.observe(run_id)
        assert (there.crc, there.durable_seq) == (here.crc, here.durable_seq)
        assert await Run(two.engine, there).result() == 200

    play(postgres, scenario)


def test_news_are_faster_than_looking(postgres: Callable[[], str]) -> None:
    """By the median: a single one may come late on a busy machine."""

    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, lingers)
        live = await two.engine.observe(run_id)
        await asyncio.sleep(0.3)  # it is being followed by now
        here = one.engine.runs[run_id]
        took = []
        for number in range(40):
            here.emit(f"x/{number}", b"data: 1\n\n")
            began_s = time.perf_counter()
            async with asyncio.timeout(PATIENCE_S):
                while live.durable_offset < here.offset:
                    await live.progress()
            took.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.01)
        assert sorted(took)[len(took) // 2] < 0.2

    play(postgres, scenario)


def test_without_news_it_looks_for_itself(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints.stores.postgres_news.News.tell", lambda *_, **__: None)

    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, asks, "go")
        reading = asyncio.create_task(read_all(two, run_id))
        receipt = await two.engine.signal(await two.engine.observe(run_id), "go", 7)
        assert receipt.outcome == "taken"
        assert await reading == ["asked"]

    play(postgres, scenario)


def test_a_lost_news_connection_comes_back(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        assert isinstance(two.store, PostgresStore)
        run_id = await begun(one, counts, 50, 10)
        reading = asyncio.create_task(read_all(two, run_id))
        await execute(
            two.store,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'durable%news%'",
        )
        open_gate("counts")
        assert await reading == list(range(50))
        nodes = two.store.nodes
        assert nodes is not None
        async with asyncio.timeout(PATIENCE_S):
            while nodes.poll_s < 1:
                await asyncio.sleep(0.01)

    play(postgres, scenario)


def test_a_reader_stays_when_a_run_changes_hands(postgres: Callable[[], str]) -> None:
    """A reader on a third node does not notice that the run's node is gone."""

    async def main() -> None:
        async with worlds(postgres, 3) as (one, two, three):
            assert isinstance(one.store, PostgresStore)
            run_id = await begun(one, counts, 50, 10)
            reading = asyncio.create_task(read_all(three, run_id))
            live = await three.engine.observe(run_id)
            async with asyncio.timeout(PATIENCE_S):
                while live.durable_offset < 10:
                    await live.progress()
            three.engine.draining = True
            await one.crash()
            open_gate("counts")
            await one.store.close()
            assert await reading == list(range(50))
            record = await two.store.get(run_id)
            assert record is not None
            assert (record.status, record.epoch) == ("completed", 2)
            await one.boot()

    asyncio.run(main())


def test_i6_readers_of_a_fenced_run_are_cut_and_come_back(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        assert isinstance(one.store, PostgresStore)
        run_id = await begun(one, counts, 50, 10)
        reading = asyncio.create_task(read_all(one, run_id))
        await asyncio.sleep(0)
        await execute(one.store, "update nodes set lease_until = now() - interval '1 s'"
                      " where node = $1", one.store.node)  # fmt: skip
        async with asyncio.timeout(PATIENCE_S):
            while run_id not in two.engine.runs:
                await asyncio.sleep(0.005)
        open_gate("counts")
        with pytest.raises(Fenced):
            await reading
        assert await read_all(one, run_id) == list(range(50))

    play(postgres, scenario, lease_ttl_s=120)  # the one that was ended is not renewed meanwhile


# --- asking


def test_i16_a_signal_reaches_a_run_that_another_node_drives(
    postgres: Callable[[], str],
) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, asks, "go")
        there = await two.engine.observe(run_id)
        kept = await two.engine.signal(there, "other", 1, signal_id="a")
        assert kept.outcome == "kept"
        again = await two.engine.signal(there, "other", 1, signal_id="a")
        assert (again.outcome, again.seq) == ("known", kept.seq)
        taken = await two.engine.signal(there, "go", {"n": "\U0001f600", "m": [1]})
        assert taken.outcome == "taken"
        assert await Run(two.engine, there).result() == {"n": "\U0001f600", "m": [1]}
        with pytest.raises(RunEnded):
            await two.engine.signal(there, "go", 2)
        signals = [e for e in await one.entries(run_id) if e.kind == Kind.SIGNAL]
        assert len(signals) == 2

    play(postgres, scenario)


def test_many_senders_of_one_signal_are_one_signal(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, asks, "go")
        there = await two.engine.observe(run_id)
        receipts = await asyncio.gather(
            *(two.engine.signal(there, "note", n, signal_id=f"s{n % 5}") for n in range(25)),
            *(one.engine.signal(one.engine.runs[run_id], "note", n, signal_id=f"s{n}")
              for n in range(5)),
        )  # fmt: skip
        assert len({receipt.seq for receipt in receipts}) == 5
        signals = [e for e in await one.entries(run_id) if e.kind == Kind.SIGNAL]
        assert len(signals) == 5
        await two.engine.signal(there, "go")

    play(postgres, scenario)


def test_a_signal_is_refused_across_nodes_as_it_is_on_one(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, asks_typed)
        there = await two.engine.observe(run_id)
        with pytest.raises(SignalRefused, match="does not take this"):
            await two.engine.signal(there, "go", {"ok": "perhaps"})
        await two.engine.signal(there, "go", {"ok": True})
        assert await Run(two.engine, there).result() is True

    play(postgres, scenario)


def test_a_suspended_run_is_woken_by_whichever_node_is_asked(
    postgres: Callable[[], str],
) -> None:
    async def scenario(one: World, two: World) -> None:
        one.engine.waking.suspend_grace_s = 0
        run = await one.start(asks, "go")
        async with asyncio.timeout(PATIENCE_S):
            while run.id in one.engine.runs:
                await asyncio.sleep(0.005)
        reading = asyncio.create_task(read_all(one, run.id))
        receipt = await two.engine.signal(await two.engine.observe(run.id), "go", "hi")
        assert receipt.outcome == "taken"
        assert await reading == ["asked"]
        assert await (await one.run_of(run.id)).result() == "hi"

    play(postgres, scenario)


def test_i15_a_run_is_cancelled_through_another_node(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, lingers)
        there = await two.engine.observe(run_id)
        await two.engine.cancel(there)
        with pytest.raises(RunCancelled):
            await Run(two.engine, there).result()
        await two.engine.cancel(there)
        ends = [e.kind for e in await one.entries(run_id)][-2:]
        assert ends == [Kind.CANCEL, Kind.CANCELLED]

    play(postgres, scenario)


def test_a_parent_elsewhere_hears_of_its_childs_end(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, parent_work)
        (child_id,) = one.engine.runs[run_id].children
        assert isinstance(one.store, PostgresStore)
        child = one.engine.runs[child_id]
        child.fence("it moves to another node")
        await one.store.release([child_id])
        async with asyncio.timeout(PATIENCE_S):
            while child_id not in two.engine.runs and child_id not in one.engine.runs:
                await asyncio.sleep(0.005)
        open_gate("child")
        there = await two.run_of(run_id)
        assert await there.result() == "from the child"

    play(postgres, scenario)


def test_messages_are_taken_by_whoever_has_the_run_then(postgres: Callable[[], str]) -> None:
    """The node of the run is gone when it is asked: who takes the run over answers."""

    async def scenario(one: World, two: World) -> None:
        assert isinstance(one.store, PostgresStore)
        run_id = await begun(one, asks, "go")
        there = await two.engine.observe(run_id)
        node = one.store.node
        for task in list(one.engine.tasks):
            task.cancel()  # it serves nobody any more, but has its lease
        asking = asyncio.create_task(two.engine.signal(there, "go", 5))
        await asyncio.sleep(0.3)
        assert not asking.done()
        await execute(one.store, "update nodes set lease_until = now() - interval '1 s'"
                      " where node = $1", node)  # fmt: skip
        assert (await asking).outcome in ("taken", "known")
        assert await Run(two.engine, await two.engine.observe(run_id)).result() == 5

    play(postgres, scenario, lease_ttl_s=120)  # the one that was ended is not renewed meanwhile


# --- leases


def test_i3_no_effect_begins_without_a_lease(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: World, two: World) -> None:
        assert isinstance(one.store, PostgresStore)
        two.engine.draining = True
        run_id = await begun(one, acts)
        lease = one.store._lease
        assert lease is not None
        monkeypatch.setattr(type(lease), "held", property(lambda it: it is not lease))
        open_gate("acts")
        async with asyncio.timeout(PATIENCE_S):
            while run_id in one.engine.runs:
                await asyncio.sleep(0.005)
        assert acted == []
        monkeypatch.undo()

    play(postgres, scenario)


def test_i6_a_node_that_lost_its_lease_stops_everything(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        run_id = await begun(one, lingers)
        remote = one.engine.remote
        assert remote is not None
        reader = Reader(one.store, await one.engine.observe(run_id))
        assert await reader.read()
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)  # it waits for more
        remote.fenced("the lease of this node is over")
        with pytest.raises(Fenced, match="lease"):
            await reading

    play(postgres, scenario)


def test_an_answered_wait_stays_answered_on_every_node(postgres: Callable[[], str]) -> None:
    async def scenario(one: World, two: World) -> None:
        for world in (one, two):
            world.engine.waking.sign_path = lambda run_id, *_: f"/approvals/{run_id}"
        run_id = await begun(one, decides)
        there = await two.engine.observe(run_id)
        (wait,) = await two.store.waits(_of(run_id))
        yes = {"approved": True}
        await two.engine.signal(there, wait.name, yes, ident=wait.ident)
        with pytest.raises(AlreadyAnswered) as caught:
            await two.engine.signal(there, wait.name, {"approved": False}, ident=wait.ident)
        assert orjson.loads(caught.value.answer)["data"] == yes
        open_gate("decides")

    play(postgres, scenario)


def _of(run_id: str) -> Any:
    from durable_endpoints.stores.protocol import WaitQuery

    return WaitQuery(run_id=run_id)


@durable
async def decides() -> Any:
    emit("asked")
    decision = await approval("pay", summary="Pay?")
    await gate("decides")
    return decision
