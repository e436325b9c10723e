"""`durable_endpoints.testing.replay`: journals against functions, whole, cut and changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from durable_endpoints import DurableMiddleware, Engine, durable, effect, step, wait_for_signal
from durable_endpoints.engine.functions import start
from durable_endpoints.records import Entry, Kind
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.testing import NotReplayable, Replayed, replay
from durable_endpoints.testing.exported import export, imported

ran: list[str] = []


@step
async def think(n: int) -> int:
    ran.append("think")
    await asyncio.sleep(0.001)
    return n + 1


@step
async def look(n: int) -> int:
    ran.append("look")
    return n


@effect
async def act(n: int) -> int:
    ran.append("act")
    return n


@step
async def tell(n: int) -> AsyncIterator[int]:
    ran.append("tell")
    for i in range(n):
        yield i


def record(function: Callable[..., Any], *args: Any) -> list[Entry]:
    """Return the journal of a run of a function."""

    async def main() -> list[Entry]:
        engine = Engine(MemoryStore())
        await engine.open()
        run = await start(engine, function, *args)
        await run.result()
        entries = await run.journal()
        await engine.close()
        return entries

    return asyncio.run(main())


def against(function: Any, entries: list[Entry], **more: Any) -> Replayed:
    """Replay a journal, and see that nothing runs."""
    ran.clear()
    replayed = asyncio.run(replay(function, entries, **more))
    assert not ran
    return replayed


@durable
async def mixed(n: int) -> list[Any]:
    first = await think(n)
    found = [i async for i in tell(3)]
    both = await asyncio.gather(think(10), act(20), look(30))
    return [first, found, *both]


@pytest.fixture(scope="module")
def journal() -> list[Entry]:
    return record(mixed, 1)


def test_a_journal_replays_whole(journal: list[Entry]) -> None:
    replayed = against(mixed, journal)
    assert replayed.ok
    assert replayed.beyond is None
    assert len(replayed.replayed) == replayed.recorded == 8


def test_a_journal_replays_from_every_cut(journal: list[Entry]) -> None:
    for cut in range(1, len(journal) - 1):
        replayed = against(mixed, journal[:cut])
        assert replayed.ok, (cut, replayed)
        assert replayed.beyond is not None
        assert len(replayed.replayed) == replayed.recorded
    replayed = against(mixed, journal[:-1])
    assert (replayed.ok, replayed.beyond) == (True, "came to its end: completed")


def test_a_journal_is_the_same_through_json(journal: list[Entry]) -> None:
    raw = Entry(len(journal), Kind.VALUE, "9 uuid7", 0, 1, 2, b'{"b": 1}', b"\xff\x00")
    text = orjson.dumps(export([*journal, raw]))
    assert imported(orjson.loads(text)) == [*journal, raw]
    assert against(mixed, orjson.loads(orjson.dumps(export(journal)))).ok
    with pytest.raises(ValueError, match="begins with its entry"):
        imported(journal[1:])
    with pytest.raises(ValueError, match="entry 1 of the journal is missing"):
        imported([journal[0], journal[2]])
    with pytest.raises(ValueError, match="no exported journal entry"):
        imported([{"seq": 0}])


@durable
async def result_changed(n: int) -> list[Any]:
    return [*await mixed(n), "more"]


@durable
async def one_side_more(n: int) -> list[Any]:
    first = await think(n)
    found = [i async for i in tell(3)]
    both = await asyncio.gather(think(10), act(20), look(30), act(40))
    return [first, found, *both]


@durable
async def one_side_less(n: int) -> list[Any]:
    first = await think(n)
    found = [i async for i in tell(3)]
    return [first, found, *await asyncio.gather(think(10), act(20))]


@durable
async def fails_now(n: int) -> list[Any]:
    await mixed(n)
    raise ValueError("now")


@durable
async def waits_now(n: int) -> list[Any]:
    found = await mixed(n)
    await wait_for_signal("ok")
    return found


@pytest.mark.parametrize(
    ("function", "difference"),
    [
        (result_changed, "the run returned"),
        (
            one_side_more,
            "the run had ended here, the code went beyond the journal at 'act' (call 5)",
        ),
        (one_side_less, "the journal holds steps that the code no longer calls: 'look'"),
        (fails_now, "ended as completed, with today's code as failed (ValueError: now)"),
        (waits_now, "went beyond the journal at 'signal:ok'"),
    ],
)
def test_a_drift_is_named(journal: list[Entry], function: Any, difference: str) -> None:
    replayed = against(function, journal, patience=0.3)
    assert not replayed.ok
    assert difference in (replayed.difference or "")


@durable
async def hangs(n: int) -> list[Any]:
    first = await think(n)
    await asyncio.get_running_loop().create_future()
    return [first]


@durable
async def debugged(n: int) -> list[Any]:
    first = await think(n)
    time.sleep(0.5)
    return [first, *(await mixed_rest())]


async def mixed_rest() -> list[Any]:
    found = [i async for i in tell(3)]
    return [found, *await asyncio.gather(think(10), act(20), look(30))]


def test_a_replay_that_stands_still_ends(journal: list[Entry]) -> None:
    replayed = against(hangs, journal, patience=0.2)
    assert "stood still for 0.2 s: the journal holds steps" in (replayed.difference or "")
    replayed = against(hangs, journal[:2], patience=0.2)
    assert "the handler did not come to its end" in (replayed.difference or "")


def test_a_breakpoint_is_no_standstill(journal: list[Entry]) -> None:
    assert against(debugged, journal, patience=0.2).ok


def test_another_version_is_not_replayed(journal: list[Entry]) -> None:
    replayed = against(mixed, journal, version="0")
    assert (replayed.ok, replayed.other_version) == (False, True)
    assert against(mixed, journal, version="1").ok


def test_there_must_be_something_to_replay_with(journal: list[Entry]) -> None:
    with pytest.raises(NotReplayable, match="no DurableMiddleware"):
        asyncio.run(replay(Starlette(), journal))
    meta = {**orjson.loads(journal[0].args), "function": "gone:gone"}
    moved = [journal[0]._replace(args=orjson.dumps(meta)), *journal[1:]]
    app = FastAPI()
    app.add_middleware(DurableMiddleware, store="memory:")
    with pytest.raises(NotReplayable, match="gone:gone, which no imported module defines"):
        asyncio.run(replay(app, moved))
    assert against(mixed, moved).ok  # it is the one that is given


def test_an_app_that_does_not_start_up_is_said(journal: list[Entry]) -> None:
    async def broken(_: Any) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    app = FastAPI(lifespan=asynccontextmanager(broken))
    app.add_middleware(DurableMiddleware, store="memory:")
    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(replay(app, journal))
    assert asyncio.run(replay(app, journal, lifespan=False)).ok


def test_an_app_without_a_lifespan_is_taken_as_started(journal: list[Entry]) -> None:
    async def bare(scope: Any, receive: Any, send: Callable[..., Awaitable[None]]) -> None:
        assert scope["type"] == "http"

    assert asyncio.run(replay(DurableMiddleware(bare, store="memory:"), journal)).ok
