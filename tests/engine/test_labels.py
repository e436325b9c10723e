"""Labels of runs: durable with the commit that they belong to, recorded once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints import current_run, durable, step
from durable_endpoints.engine.labels import labels_of
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.errors import NotDurable, RunFailed
from durable_endpoints.labels import asked, merged, parsed
from durable_endpoints.limits import LABELS_MAX
from durable_endpoints.records import Kind
from durable_endpoints.stores.protocol import Query
from durable_endpoints.stores.sqlite import SQLiteStore
from tests.engine.worlds import World, play, world

gates: dict[str, asyncio.Event] = {}
says: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gates.clear()
    says.clear()


async def at_gate(name: str) -> None:
    """Stop here, in the first process; the next one finds the gate open."""
    if name not in gates:
        gates[name] = asyncio.Event()
        await asyncio.sleep(3600)


@step
async def work(name: str) -> str:
    return name


async def labels(one: World, run_id: str) -> dict[str, str]:
    record = await one.store.get(run_id)
    assert record is not None
    assert labels_of(await one.entries(run_id)) == record.labels
    return parsed(record.labels)


async def recorded(one: World, run_id: str) -> list[dict[str, str]]:
    return [parsed(e.payload.decode()) for e in await one.entries(run_id) if e.kind == Kind.LABEL]


async def at(gate: str) -> None:
    async with asyncio.timeout(20):
        while gate not in gates:
            await asyncio.sleep(0.001)


@durable
async def labelled() -> dict[str, str]:
    run = current_run()
    run.label(tenant="acme", plan="free")
    await work("a")
    run.label(plan="pro", seats=3, trial=False)
    await at_gate("middle")
    for changes in says:
        run.label(**changes)
    await work("b")
    return dict(run.labels)


def test_labels_are_recorded_once_whatever_happens() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(labelled)
        await at("middle")
        await one.idle()
        first = {"tenant": "acme", "plan": "pro", "seats": "3", "trial": "false"}
        assert await labels(one, run.id) == first
        await one.crash()
        says.append({"tenant": None, "tier": "gold"})
        await one.boot()
        ended = await one.ended(run.id)
        left = {"plan": "pro", "seats": "3", "trial": "false", "tier": "gold"}
        assert await ended.result() == left
        assert await labels(one, run.id) == await ended.result()
        assert len(await recorded(one, run.id)) == 3
        found = await one.store.list(Query(labels=("tier:gold", "plan:pro")))
        assert [row.run_id for row in found] == [run.id]
        assert await one.store.list(Query(labels=("tenant:acme",))) == []

    play(scenario)


@durable
async def looked_at() -> list[Any]:
    run = current_run()
    await work("a")
    run.label(a=1)
    scope = SCOPE.get()
    assert scope is not None
    shown = scope.run.record.labels  # what readers are told
    await scope.run.durable(scope.run.seq - 1)
    return [shown, scope.run.record.labels]


def test_i1_nobody_sees_a_label_before_the_disk_has_it() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(looked_at)
        assert await (await one.ended(run.id)).result() == [None, '{"a":"1"}']

    play(scenario)


@durable
async def changed(again: bool) -> None:
    for text in says:
        current_run().label(**text)
    await work("a")
    await at_gate("changed")
    if again:
        await work("b")


def test_labels_may_come_and_go_with_the_code() -> None:
    async def scenario(one: World) -> None:
        says.extend([{"a": "1"}, {"a": "1"}, {"a": "2"}, {"gone": "x"}])
        run = await one.start(changed, True)
        await at("changed")
        await one.idle()
        await one.crash()
        says[:] = [{"new": "y"}, {"a": "1"}, {"a": "2"}]
        await one.boot()
        ended = await one.ended(run.id)
        assert ended.status == "completed"
        assert await labels(one, run.id) == {"a": "2", "gone": "x", "new": "y"}
        assert len(await recorded(one, run.id)) == 5

    play(scenario)


def test_tasks_side_by_side_label_one_run() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(side_by_side)
        await at("side")
        await one.idle()
        await one.crash()
        await one.boot()
        await one.ended(run.id)
        assert await labels(one, run.id) == {f"task{n}": "on" for n in range(5)}
        assert len(await recorded(one, run.id)) == 5

    play(scenario)


@durable
async def side_by_side() -> None:
    async def one(number: int) -> None:
        await work(f"{number}")
        current_run().label(**{f"task{number}": "on"})

    await asyncio.gather(*(one(number) for number in range(5)))
    await at_gate("side")


def test_a_fork_has_the_labels_of_what_it_shares() -> None:
    async def scenario(one: World) -> None:
        gates["changed"] = asyncio.Event()
        says.extend([{"a": "1", "b": "2"}, {"a": "3"}])
        run = await one.start(changed, True)
        await one.ended(run.id)
        says.clear()  # what the fork has, it has from the run that it shares with
        second = [e.seq for e in await one.entries(run.id) if e.kind == Kind.LABEL][1]
        forked = await run.fork(second)
        await one.ended(forked.id)
        assert await labels(one, forked.id) == {"a": "1", "b": "2"}

    play(scenario)


@durable(labels={"team": "support", "tenant": "{tenant}"})
async def declared(tenant: str) -> dict[str, str]:
    return dict(current_run().labels)


def test_an_endpoint_declares_labels() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(declared, "acme: eu")
        await one.ended(run.id)
        assert await labels(one, run.id) == {"team": "support", "tenant": "acme: eu"}

    play(scenario)


@durable
async def inside_a_step() -> None:
    async def body() -> None:
        current_run().label(a="b")

    await step.run("body", body)


def test_not_inside_a_step() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(inside_a_step)
        with pytest.raises(RunFailed, match="label is for the handler"):
            await (await one.ended(run.id)).result()

    play(scenario)


def test_not_outside_of_runs() -> None:
    with pytest.raises(NotDurable):
        current_run()


@pytest.mark.parametrize(
    "changes",
    [
        {"": "x"}, {"a:b": "x"}, {"n" * 65: "x"}, {"a\n": "x"}, {"a": "v" * 201}, {"a": "\0"},
        {"a": "\ud800"}, {"api_key": "x"}, {f"n{n}": "x" for n in range(LABELS_MAX + 1)},
    ],
)  # fmt: skip
def test_what_is_no_label(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="label"):
        merged(None, changes)


def test_a_label_is_text() -> None:
    with pytest.raises(TypeError, match="label a: give text"):
        merged(None, {"a": ["x"]})  # type: ignore[dict-item]
    full = {f"n{n}": "x" for n in range(LABELS_MAX)}
    assert parsed(merged(merged(None, full), {"n0": None, "more": True}))["more"] == "true"


def test_what_is_asked_for() -> None:
    assert asked(["tenant:a:b", "x:", "tenant:a:b"]) == ("tenant:a:b", "x:")
    for text in ("tenant", ":x", "a:\n"):
        with pytest.raises(ValueError, match="name:value"):
            asked([text])
    with pytest.raises(ValueError, match="at most"):
        asked([f"n{n}:x" for n in range(LABELS_MAX + 1)])


def test_i21_the_labels_of_a_deleted_run_are_gone_from_the_disk(tmp_path: Path) -> None:
    text = b"of-somebody-who-wants-to-be-forgotten"

    async def main() -> None:
        store = SQLiteStore(tmp_path / "d.db")
        async with world(store) as one:
            run = await one.start(declared, text.decode())
            await one.ended(run.id)
            assert any(text in file.read_bytes() for file in tmp_path.iterdir())
            assert await store.delete(run.id)
            assert not any(text in file.read_bytes() for file in tmp_path.iterdir())

    asyncio.run(main())
