"""I2, I11, I12, I15, I17: what replays, replays the same; what differs is parked."""

from __future__ import annotations

import asyncio
import random as chance
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_endpoints import durable, emit, now, random, step, uuid7
from durable_endpoints.engine.endpoints import ENDPOINTS
from durable_endpoints.errors import RunCancelled, RunFailed, StreamInterrupted
from durable_endpoints.records import TERMINAL_KINDS, Kind
from tests.engine.worlds import World, play

executed: Counter[str] = Counter()
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    executed.clear()
    gates.clear()


async def at_gate(name: str) -> None:
    """Stop here, in the first process; the next one finds the gate open."""
    if name in gates:
        return
    gates[name] = asyncio.Event()
    await asyncio.sleep(3600)


@step
async def work(name: str) -> str:
    executed[name] += 1
    await asyncio.sleep(0)
    return f"did {name}"


@step
async def slow(name: str) -> str:
    await asyncio.sleep(chance.random() / 300)
    executed[name] += 1
    return name


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def durable_steps(one: World, run_id: str) -> list[str]:
    return [e.key for e in await one.entries(run_id) if e.kind == Kind.STEP]


@durable
async def three(crash_at: int) -> list[str]:
    out = []
    for number in range(6):
        if number == crash_at:
            await at_gate("three")
        out.append(await work(f"s{number}"))
    return out


@pytest.mark.parametrize("crash_at", range(6))
def test_i2_durable_steps_never_run_again(crash_at: int) -> None:
    async def scenario(one: World) -> None:
        run = await one.start(three, crash_at)
        await until(lambda: "three" in gates)
        await one.idle()
        assert len(await durable_steps(one, run.id)) == crash_at
        await one.crash()
        await one.boot()
        again = await one.ended(run.id)
        assert await again.result() == [f"did s{n}" for n in range(6)]
        assert executed == {f"s{n}": 1 for n in range(6)}

    play(scenario)


def test_i15_one_terminal_entry_and_it_is_the_last() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(three, 99)
        await run.result()
        entries = await one.entries(run.id)
        assert [e.kind for e in entries if e.kind in TERMINAL_KINDS] == [entries[-1].kind]
        assert [e.seq for e in entries] == list(range(len(entries)))

    play(scenario)


@durable
async def crowd(names: list[str]) -> dict[str, Any]:
    order: list[str] = []

    async def one(name: str) -> None:
        first = await slow(f"{name}1")
        order.append(first)
        await work(f"{name}2")
        order.append(f"{name}2")

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    gathered = await asyncio.gather(*(slow(f"g{n}") for n in names))
    await at_gate("crowd")
    last = await work("last")
    return {"order": order, "gathered": gathered, "last": last}


def test_i12_concurrent_steps_replay_in_the_order_in_which_they_completed() -> None:
    async def scenario(one: World) -> None:
        names = list("abcdefgh")
        run = await one.start(crowd, names)
        await until(lambda: "crowd" in gates)
        await one.idle()
        recorded = [key.split("/")[-1] for key in await durable_steps(one, run.id)]
        assert len(recorded) == 24
        before = [e for e in await one.entries(run.id) if e.kind == Kind.STEP]
        await one.crash()
        await one.boot()
        result = await (await one.ended(run.id)).result()
        assert result["gathered"] == [f"g{n}" for n in names]
        assert executed == dict.fromkeys(
            [f"{n}{i}" for n in names for i in (1, 2)] + [f"g{n}" for n in names] + ["last"], 1
        )
        # The handler's own list grew in the order of the journal, not of the second attempt.
        payloads = [e.payload.decode().strip('"').removeprefix("did ") for e in before[:16]]
        assert result["order"] == payloads

    play(scenario)


Tree = Any
trees = st.recursive(
    st.builds(lambda n: ("step", n), st.integers(0, 3)),
    lambda inner: st.tuples(
        st.sampled_from(["seq", "all"]), st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=10,
)


async def _walk(tree: Tree, path: str, order: list[str]) -> Any:
    kind, rest = tree
    if kind == "step":
        value = await slow(path)
        order.append(path)
        return value
    if kind == "seq":
        return [await _walk(sub, f"{path}.{n}", order) for n, sub in enumerate(rest)]
    return list(
        await asyncio.gather(*(_walk(sub, f"{path}.{n}", order) for n, sub in enumerate(rest)))
    )


@durable
async def walk(tree: Tree) -> Any:
    order: list[str] = []
    return [await _walk(tree, "t", order), order]


@given(tree=trees, commits=st.lists(st.integers(1, 6), max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_i2_i12_any_shape_of_concurrency_survives_crashes_at_any_commit(
    tree: Tree, commits: list[int]
) -> None:
    executed.clear()

    async def scenario(one: World) -> None:
        run = await one.start(walk, tree)
        durable_once: Counter[str] = Counter()
        for count in commits:
            begun = one.engine.log.commits
            record = await one.store.get(run.id)
            while one.engine.log.commits < begun + count:
                record = await one.store.get(run.id)
                if record is None or record.status != "running":
                    break
                await asyncio.sleep(0)
            await one.crash()
            ran = Counter(executed)
            for key in await durable_steps(one, run.id):
                durable_once[key] += 1
            await one.boot()
            assert all(executed[name] >= times for name, times in ran.items())
        ended = await one.ended(run.id)
        assert ended.status == "completed", (await one.store.get(run.id)).error  # type: ignore[union-attr]
        keys = await durable_steps(one, run.id)
        assert len(keys) == len(set(keys)) == len(executed)
        _, order = await ended.result()
        recorded = [e for e in await one.entries(run.id) if e.kind == Kind.STEP]
        assert order == [e.payload.decode().strip('"') for e in recorded]

    play(scenario)


@durable
async def changing() -> str:
    return await work("before")


def test_i11_other_code_parks_the_run_and_appends_nothing() -> None:
    async def scenario(one: World) -> None:
        async def first() -> str:
            await work("a")
            await at_gate("changing")
            return await work("b")

        async def second() -> str:
            await step.run("renamed", work, "a")
            return "new"

        await _swap_code(one, first, second, "the code now calls 'renamed'")

    play(scenario)


def test_i11_other_arguments_park_the_run() -> None:
    async def scenario(one: World) -> None:
        async def first() -> str:
            await work("a")
            await at_gate("changing")
            return await work("b")

        async def second() -> str:
            return await work("other")

        await _swap_code(one, first, second, "its arguments are not those recorded")

    play(scenario)


def test_i11_steps_that_are_no_longer_called_park_the_run() -> None:
    async def scenario(one: World) -> None:
        async def first() -> str:
            await work("a")
            await at_gate("changing")
            return await work("b")

        async def second() -> str:
            return "nothing"

        await _swap_code(one, first, second, "the code no longer calls")

    play(scenario)


async def _swap_code(one: World, first: Any, second: Any, said: str) -> None:
    name = f"{__name__}:changing"
    spec, _ = ENDPOINTS[name]
    ENDPOINTS[name] = (spec, first)
    first.durable_endpoint = spec
    run = await one.start(first)
    await until(lambda: "changing" in gates)
    await one.idle()
    await one.crash()
    before = await one.entries(run.id)
    ENDPOINTS[name] = (spec, second)
    await one.boot()
    parked = await one.ended(run.id)
    assert parked.status == "diverged"
    record = await one.store.get(run.id)
    assert record is not None
    assert said in (record.error or "")
    assert await one.entries(run.id) == before
    await one.recovery.sweep()  # a parked run is not taken up again
    assert (await one.store.get(run.id)).status == "diverged"  # type: ignore[union-attr]


@durable
async def told() -> list[str]:
    first = [now().isoformat(), str(uuid7()), str(random().random())]
    await at_gate("told")
    return [*first, now().isoformat(), str(uuid7()), str(random().random())]


def test_time_ids_and_chance_are_the_same_at_replay() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(told)
        await until(lambda: "told" in gates)
        await one.idle()
        values = [e.payload for e in await one.entries(run.id) if e.kind == Kind.VALUE]
        await one.crash()
        await one.boot()
        result = await (await one.ended(run.id)).result()
        after = [e.payload for e in await one.entries(run.id) if e.kind == Kind.VALUE]
        assert after[:2] == values
        assert len(after) == 4
        assert len(set(result)) >= 5

    play(scenario)


@step
async def fails(name: str) -> str:
    executed[name] += 1
    raise KeyError(name)


@durable
async def catches() -> str:
    try:
        await fails("f")
    except KeyError as error:
        await at_gate("catches")
        return f"caught {error.args[0]} {await work('after')}"
    return "nothing raised"


def test_a_recorded_failure_is_raised_again_and_not_run_again() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(catches)
        await until(lambda: "catches" in gates)
        await one.idle()
        await one.crash()
        await one.boot()
        assert await (await one.ended(run.id)).result() == "caught f did after"
        assert executed == {"f": 1, "after": 1}

    play(scenario)


def _stream(policy: str) -> Any:
    @step(name=f"letters-{policy}", on_interrupt=policy)
    async def letters(**kwargs: Any) -> AsyncIterator[str]:
        done = kwargs.get("recorded", [])
        for letter in "abcdef"[len(done) :]:
            if letter == "d":
                await at_gate(policy)
            executed[letter] += 1
            yield letter

    async def shows() -> list[str]:
        out = []
        try:
            async for letter in letters():
                emit(letter)
                out.append(letter)
        except StreamInterrupted as interrupted:
            emit("interrupted")
            return ["interrupted", *map(str, interrupted.recorded)]
        return out

    shows.__qualname__ = f"shows_{policy}"
    return durable(shows)


STREAMS = {
    name: _stream(name) for name in ("auto", "restart", "resume", "finalize", "fail", "hold")
}
WHOLE = list("abcdef")
EXPECTED: dict[str, tuple[list[str], dict[str, int]]] = {
    "auto": (["interrupted", "a", "b", "c"], {"a": 1, "b": 1, "c": 1}),
    "fail": (["interrupted", "a", "b", "c"], {"a": 1, "b": 1, "c": 1}),
    "resume": (WHOLE, dict.fromkeys(WHOLE, 1)),
    "finalize": (["a", "b", "c"], {"a": 1, "b": 1, "c": 1}),
    "hold": (WHOLE, {**dict.fromkeys("abc", 2), **dict.fromkeys("def", 1)}),
    "restart": (WHOLE, {**dict.fromkeys("abc", 2), **dict.fromkeys("def", 1)}),
}


@pytest.mark.parametrize("policy", EXPECTED)
@pytest.mark.parametrize("crashes", [1, 3])
def test_a_half_streamed_step_follows_its_policy(policy: str, crashes: int) -> None:
    async def scenario(one: World) -> None:
        emit_first = STREAMS[policy]
        run = await one.start(emit_first)
        await until(lambda: policy in gates)
        await one.idle()
        for _ in range(crashes):
            await one.crash()
            await one.boot()
        result, runs = EXPECTED[policy]
        ended = await one.ended(run.id)
        assert await ended.result() == result
        if crashes == 1:
            assert executed == runs
        events = [e async for e in (await one.run_of(run.id)).events()]
        assert [e.offset for e in events] == list(range(len(events)))

    play(scenario)


@durable
async def waits_for_ever() -> str:
    await work("first")
    await asyncio.sleep(3600)
    return "never"


def test_cancel_is_durable_and_survives_a_crash() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(waits_for_ever)
        await until(lambda: executed["first"] == 1)
        await run.cancel()
        ended = await one.ended(run.id)
        with pytest.raises(RunCancelled):
            await ended.result()
        await one.crash()
        await one.boot()
        assert (await one.run_of(run.id)).status == "cancelled"

    play(scenario)


@durable
async def crashes_always() -> None:
    await at_gate(f"poison{len(gates)}")


def test_i17_a_run_that_makes_no_progress_dies_and_its_neighbour_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable_endpoints.engine.recovery.RECOVERY_BACKOFF_S", (0.0,))

    async def scenario(one: World) -> None:
        run = await one.start(crashes_always)
        for number in range(6):
            await until(lambda n=number: f"poison{n}" in gates)  # type: ignore[misc]
            await one.crash()
            neighbour = None
            await one.boot()
            neighbour = await one.start(three, 99)
            assert len(await neighbour.result()) == 6
        ended = await one.ended(run.id)
        assert ended.status == "dead"
        with pytest.raises(RunFailed, match="no progress"):
            await ended.result()

    play(scenario)


@step(on_interrupt="restart")
async def poisoned() -> AsyncIterator[int]:
    for number in range(100):
        if number == 3:
            await at_gate(f"poison{len(gates)}")
        yield number


@durable
async def streams_poison() -> None:
    async for number in poisoned():
        emit(str(number))


def test_i17_the_same_items_again_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable_endpoints.engine.recovery.RECOVERY_BACKOFF_S", (0.0,))

    async def scenario(one: World) -> None:
        run = await one.start(streams_poison)
        for number in range(6):
            await until(lambda n=number: f"poison{n}" in gates)  # type: ignore[misc]
            await one.idle()
            await one.crash()
            await one.boot()
        assert (await one.ended(run.id)).status == "dead"

    play(scenario)


@durable
async def says_nonsense() -> None:
    raise ValueError("lone \ud800 surrogate")


def test_an_error_that_utf8_cannot_hold_fails_its_run_only() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(says_nonsense)
        with pytest.raises(RunFailed, match="lone"):
            await run.result()
        neighbour = await one.start(three, 99)
        assert len(await neighbour.result()) == 6

    play(scenario)
