"""Kinds of work: steps, streams, and their parts side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from random import Random
from typing import Any

import durable_endpoints as durable
from durable_endpoints.errors import StreamInterrupted
from tests.simulation.programs import Node, Place, op
from tests.simulation.world import here

# --- steps


@durable.step
async def work(label: str) -> str:
    with here().executing(label) as value:
        await here().linger()
        return value


@durable.step
def work_now(label: str) -> str:
    with here().executing(label) as value:
        return value


@durable.step
async def fails(label: str) -> str:
    with here().executing(label) as value:
        await here().linger()
        raise KeyError(value)


@durable.step(timeout=0.05)
async def too_slow(label: str) -> str:
    with here().executing(label) as value:
        await asyncio.sleep(1)
        return value


@durable.step
async def peek(label: str) -> str:
    with here().executing(label) as value:
        await here().linger()
        board = here().board
        return f"{value}~saw:{board[-1]}" if board else value


async def _items(label: str, count: int, recorded: list[str] | None = None) -> AsyncIterator[str]:
    for number in range(len(recorded or ()), count):
        with here().executing(f"{label}#{number}", of=label) as value:
            await here().linger()
        yield value


async def _broken(label: str, count: int, recorded: list[str] | None = None) -> AsyncIterator[str]:
    async for item in _items(label, count, recorded):
        yield item
    raise KeyError(label)


async def _flaky(label: str, count: int, recorded: list[str] | None = None) -> AsyncIterator[str]:
    chance = here().world.chance
    async for item in _items(label, count, recorded):
        if chance.random() < 0.2:
            raise ConnectionError(label)
        yield item


def _stream(policy: str, source: Any = _items, retry: durable.Retry | None = None) -> Any:
    if policy == "resume":
        return durable.step(name=policy, on_interrupt=policy, retry=retry)(source)

    async def items(label: str, count: int) -> AsyncIterator[str]:
        async for item in source(label, count):
            yield item

    return durable.step(name=policy, on_interrupt=policy, retry=retry)(items)


POLICIES = ("auto", "restart", "resume", "finalize", "fail", "hold")
STREAMS = {policy: _stream(policy) for policy in POLICIES}
BROKEN = {policy: _stream(policy, _broken) for policy in POLICIES}
FLAKY = {policy: _stream(policy, _flaky, durable.Retry(4, initial=0.1)) for policy in POLICIES}


# --- ops


@op("step", weight=8)
async def _step(at: Place) -> Any:
    return at.got(await work(at.label))


@op("named step", weight=2)
async def _named(at: Place) -> Any:
    return at.got(await durable.step.run(f"step {at.label}", work.__wrapped__, at.label))  # type: ignore[attr-defined]


@op("plain step", weight=1)
async def _plain(at: Place) -> Any:
    return at.got(work_now(at.label))


@op("told step", weight=6)
async def _told(at: Place) -> Any:
    value = at.got(await work(at.label))
    at.tell(f"{at.label} made {value}")
    return value


@op("failing step", weight=2)
async def _fails(at: Place) -> Any:
    try:
        return await fails(at.label)
    except KeyError as error:
        at.tell(f"{at.label} failed")
        return at.got(error.args[0])


@op("late step", weight=2)
async def _late(at: Place) -> Any:
    await asyncio.sleep(at.world.chance.choice((0, 0, 0.001, 0.3)))
    return at.got(await work(at.label))


@op("slow step", weight=1)
async def _slow(at: Place) -> Any:
    try:
        return await too_slow(at.label)
    except TimeoutError:
        return f"{at.label} took too long"


@op("values", weight=2)
async def _values(at: Place) -> Any:
    drawn = [durable.now().isoformat(), str(durable.uuid7()), durable.random().random()]
    at.tell(f"{at.label}: {drawn}")
    return at.got(await work(at.label))


@op("patched", weight=1)
async def _patched(at: Place) -> Any:
    if not durable.patched(at.label):
        at.world.blame("I11", durable.current_run().id, f"{at.label} was never the old code's")
    return at.got(await work(at.label))


@op("changed", weight=1)
async def _changed(at: Place) -> Any:
    """Code that was changed: processes from some number on have it, those before had not."""
    if here().number >= at.fixed.randint(0, 3) and durable.patched(at.label):
        at.got(await durable.step.run(f"before {at.label}", work.__wrapped__, f"{at.label}!"))  # type: ignore[attr-defined]
    return at.got(await work(at.label))


@op("note", weight=2)
async def _note(at: Place) -> Any:
    value = at.got(await work(at.label))
    here().board.append(f"{durable.current_run().id}/{at.label}!{value}")
    return value


@op("peek", weight=2)
async def _peek(at: Place) -> Any:
    return at.got(await peek(at.label))


def kinds_of(nodes: Iterable[Node]) -> set[str]:
    """Return the kinds of work in a program; streams with their policy, too."""
    found = set()
    for node in nodes:
        found |= {node.op} | kinds_of(node.parts)
        if node.op == "stream":
            found.add(f"stream {Random(node.seed).choice(POLICIES)}")
    return found


@op("stream", weight=5)
async def _streamed(at: Place) -> Any:
    policy = at.fixed.choice(POLICIES)
    got: list[Any] = []
    try:
        async for item in STREAMS[policy](at.label, at.fixed.randint(1, 6)):
            got.append(at.got(item))
            at.tell(f"{at.label} {policy}: {item}")
    except StreamInterrupted as cut:
        recorded = [str(item) for item in cut.recorded]
        at.tell(f"{at.label} was cut after {recorded}")
        if recorded[: len(got)] != got:
            at.world.blame("I2", durable.current_run().id, f"cut after {recorded}, had {got}")
        return recorded
    return got


@op("silent stream", weight=2)
async def _silent(at: Place) -> Any:
    """Nothing of it is shown before its end."""
    try:
        got = [item async for item in STREAMS[at.fixed.choice(POLICIES)](at.label, 3)]
    except StreamInterrupted as cut:
        got = [str(item) for item in cut.recorded]
    at.tell(f"{at.label} streamed {got}")
    return got


@op("broken stream", weight=1)
async def _breaks(at: Place) -> Any:
    streams = at.fixed.choice((BROKEN, FLAKY))
    try:
        async for item in streams[at.fixed.choice(POLICIES)](at.label, 2):
            at.tell(f"{at.label}: {item}")
    except (KeyError, ConnectionError, StreamInterrupted) as error:
        at.tell(f"{at.label} broke: {type(error).__name__}")
    return None


@op("left stream", weight=1)
async def _leaves(at: Place) -> Any:
    stream = STREAMS[at.fixed.choice(("auto", "resume", "restart"))](at.label, 5)
    try:
        async for item in stream:
            at.tell(f"{at.label} took {item}")
            if item.partition("=")[0].endswith("#1"):
                break
    except StreamInterrupted:
        at.tell(f"{at.label} was cut")
    await stream.aclose()
    return None


@op("gather", weight=4, parts=(2, 5))
async def _gather(at: Place) -> Any:
    return list(await asyncio.gather(*at.parts()))


@op("group", weight=4, parts=(2, 4))
async def _group(at: Place) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part) for part in at.parts()]
    return [task.result() for task in tasks]


@op("race", weight=4)
async def _race(at: Place) -> Any:
    """Steps side by side, each shown as it completes."""
    labels = [f"{at.label}.r{number}" for number in range(at.fixed.randint(2, 5))]
    # Tasks, no coroutines: `as_completed` begins the latter in the order of their addresses.
    steps = [asyncio.ensure_future(work(label)) for label in labels]
    found = []
    for next_done in asyncio.as_completed(steps):
        found.append(at.got(await next_done))
        at.tell(f"{at.label}: {found[-1]}")
    return found


@op("first", weight=2)
async def _first(at: Place) -> Any:
    """Steps side by side; the first one's result is shown while the others go on."""
    steps = [asyncio.ensure_future(work(f"{at.label}.f{number}")) for number in range(3)]
    done, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
    at.tell(f"{at.label}: first {[steps.index(one) for one in steps if one in done]}")
    return [at.got(value) for value in await asyncio.gather(*steps)]


@op("failing group", weight=1)
async def _failing_group(at: Place) -> Any:
    """One part fails, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                step = fails if number == 1 else work
                group.create_task(step(f"{at.label}.x{number}"))
    except* KeyError:
        at.tell(f"{at.label}: the group failed")
    return None
