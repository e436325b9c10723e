"""Promises that a fast test in one process can hold on to, each the catcher of a mutant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints import (
    SQLiteStore,
    StoreError,
    current_run,
    durable,
    effect,
    emit,
    random,
    step,
)
from durable_endpoints.engine.waking import Waking
from durable_endpoints.errors import Diverged, StoreFailed
from durable_endpoints.journal import Journal
from durable_endpoints.limits import WINDOW_ENTRIES_MAX
from durable_endpoints.records import Entry, Kind
from tests.crash.held import HeldStore, one, run
from tests.crash.process import CrashServer
from tests.engine.worlds import World, play


@durable
async def racing(names: list[str]) -> list[str]:
    """Another scheduling at every attempt, made by waits that are no steps."""

    async def one_of(name: str) -> str:
        is_late = (name == names[-1]) != bool(reached)  # late at first, early at the replay
        for _ in range(20 * is_late):
            await asyncio.sleep(0)
        return await named(name)

    made = list(await asyncio.gather(*(one_of(name) for name in names)))
    await stop_once("racing")
    return made


@durable
async def drawing() -> float:
    first = random().random()
    emit(str(first))
    await stop_once("drawing")
    return first


@step
async def named(name: str) -> str:
    return name


reached: dict[str, asyncio.Event] = {}


async def stop_once(name: str) -> None:
    """Stay here in the first process; the next one goes on."""
    if name not in reached:
        reached[name] = asyncio.Event()
        await asyncio.Event().wait()


def replayed(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in one process up to its stop and to its end in the next; its result."""
    found: list[Any] = []
    reached.clear()

    async def scenario(world: World) -> None:
        begun = await world.start(function, *args)
        async with asyncio.timeout(10):
            while function.__name__ not in reached:
                await asyncio.sleep(0.001)
        await world.engine.log.flush()
        await world.crash()
        await world.boot()
        ended = await world.ended(begun.id)
        assert ended.status == "completed"
        found.append(await ended.result())

    play(scenario)
    return found[0]


def test_i12_identity_does_not_depend_on_scheduling() -> None:
    names = [f"n{number}" for number in range(4)]
    assert replayed(racing, names) == names


def test_i11_chance_is_the_same_at_every_attempt() -> None:
    assert 0 <= replayed(drawing) < 1


@pytest.mark.parametrize("leased", [True, False])
def test_i3_no_effect_begins_once_the_lease_is_over(
    leased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs out between the intent and the effect; the intent is durable."""
    begun: list[str] = []

    @effect
    async def act() -> None:
        begun.append(current_run().id)

    @durable
    async def acting() -> None:
        await act()

    async def work() -> None:
        world = World()
        await world.engine.open()
        monkeypatch.setattr(Waking, "may_act", lambda _: leased)
        started = await world.start(acting)
        live = started._run
        while live.fenced is None and not live.ended:
            await live.progress()
        assert begun == [started.id] * leased
        assert [entry.kind for entry in await world.entries(started.id)][1] == Kind.INTENT
        await world.engine.close()

    run(work)


def test_i11_another_body_than_the_recorded_one_is_a_divergence() -> None:
    """However the bytes are cut into pieces; what goes beyond the recorded ones is new."""
    bodies = [Entry(seq, Kind.CHUNK, "", 0, 0, 0, b"", piece)
              for seq, piece in enumerate((b"one", b"two"))]  # fmt: skip
    same = Journal(bodies)
    assert [same.match_body(piece) for piece in (b"o", b"net", b"wo three")] == [
        b"",
        b"",
        b" three",
    ]
    with pytest.raises(Diverged, match="body event 2: recorded b'two'"):
        Journal(bodies).match_body(b"onetwelve")


def test_i14_the_window_of_what_is_not_durable_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the disk takes, no more than so many steps run ahead of it."""
    # It is bounded in time, too: that bound would come first where this machine pauses.
    monkeypatch.setattr("durable_endpoints.engine.log.WINDOW_AGE_S_MAX", 60.0)

    async def work() -> None:
        store = HeldStore()
        world = World(store)
        await world.engine.open()
        ran: list[int] = []

        @durable
        async def endless() -> int:
            while len(ran) < 2 * WINDOW_ENTRIES_MAX:
                ran.append(await one(len(ran)))
            return len(ran)

        beginning = asyncio.create_task(world.start(endless))
        await store.waiting.wait()
        log, before = world.engine.log, -1
        while before < len(ran) or not log.full:  # until it stands still
            before = len(ran)
            for _ in range(200):
                await asyncio.sleep(0)
            assert len(ran) <= WINDOW_ENTRIES_MAX
        assert len(ran) > WINDOW_ENTRIES_MAX // 2
        store.open_gate.set()
        assert await (await beginning).result() == 2 * WINDOW_ENTRIES_MAX
        await world.engine.close()

    run(work)


@pytest.mark.crash
def test_one_bad_payload_does_not_poison_the_batch(tmp_path: Path) -> None:
    """What cannot be written fails its own run: neighbours in the same batch go on (I20)."""

    async def work(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            for how in ("raise", "step", "result", "name", "emit"):
                neighbours = (http.post("/json?n=3&ms=1") for _ in range(4))
                # Behind a failed app uvicorn closes the connection: nobody else may be given it.
                bad = http.post(f"/bad?how={how}", headers={"connection": "close"})
                asked = (bad, *neighbours)
                failed, *others = await asyncio.gather(*asked)
                assert failed.status_code == 500, how
                assert [other.status_code for other in others] == [200] * 4, how
            runs = (await http.get("/_durable/runs")).json()["runs"]
        assert sorted(run["status"] for run in runs) == ["completed"] * 20 + ["failed"] * 5

    with CrashServer(tmp_path) as server:
        asyncio.run(work(server.url))


def test_only_one_connection_can_write(tmp_path: Path) -> None:
    """SQLite before 3.51.3 can corrupt a database under two connections that write."""

    async def work() -> None:
        store = SQLiteStore(tmp_path / "durable.db")
        await store.open()
        try:
            with pytest.raises(StoreError, match="readonly"):
                await store._read(lambda db: db.execute("delete from runs"))
        finally:
            await store.close()

    run(work)


def test_a_failed_write_is_never_followed_by_another(tmp_path: Path) -> None:
    """I9: after one failure the store refuses, whatever the next write is."""

    async def work() -> None:
        store = SQLiteStore(tmp_path / "durable.db")
        await store.open()
        try:
            with pytest.raises(StoreFailed):
                await store._write(lambda db: db.execute("insert into nothing values (1)"))
            assert store.failed is not None
            with pytest.raises(StoreFailed):
                await store.claim(["any"], 0)
            with pytest.raises(StoreFailed):
                await store.append([])
        finally:
            await store.close()

    run(work)
