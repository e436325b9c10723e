"""Kinds of work that wait: times, signals, effects, retries, children."""

from __future__ import annotations

import asyncio
from typing import Any

import durable_endpoints as durable
from durable_endpoints.errors import EffectAmbiguous, RunCancelled, RunFailed, SignalTimeout
from tests.simulation.programs import Node, Place, op, play_node
from tests.simulation.world import here

ATTEMPTS = 3


@op("sleep", weight=3)
async def _sleep(at: Place) -> Any:
    await durable.sleep(at.fixed.choice((0, 0.001, 0.05, 0.7, 4)))
    at.tell(f"{at.label} has slept")


@op("wait", weight=3)
async def _wait(at: Place) -> Any:
    """A client sends what is waited for (see `signals_of`)."""
    got = await durable.wait_for_signal(at.label, once=at.fixed.random() < 0.3)
    at.tell(f"{at.label} got {at.heard(got)}")
    return None


@op("wait a while", weight=2)
async def _wait_a_while(at: Place) -> Any:
    """The signal and the timeout race."""
    try:
        got = await durable.wait_for_signal(at.label, timeout=at.fixed.choice((0, 0.05, 3)))
    except SignalTimeout:
        at.tell(f"{at.label} waited in vain")
        return None
    at.tell(f"{at.label} got {at.heard(got)}")
    return None


def signals_of(nodes: tuple[Node, ...] | list[Node]) -> list[str]:
    """Return the signals that a program waits for."""
    found = []
    for node in nodes:
        if node.op in ("wait", "wait a while"):
            found.append(node.label)
        found += signals_of(node.parts)
    return found


# --- effects


async def _ask_receiver(key: str, label: str) -> str:
    """Say what the receiver of an effect has of a key."""
    await here().linger()
    return here().world.received[key]


async def _effect(label: str) -> str:
    with here().acting(label) as value:
        await here().linger()
        return value


EFFECTS = {
    "retry": durable.effect(name="acts")(_effect),
    "fail": durable.effect(name="acts once", on_ambiguous="fail")(_effect),
    "verify": durable.effect(name="acts verified", verify=_ask_receiver)(_effect),
}


@op("effect", weight=3)
async def _acts(at: Place) -> Any:
    how = at.fixed.choice(list(EFFECTS))
    try:
        value = await EFFECTS[how](at.label)
    except EffectAmbiguous:
        at.tell(f"{at.label} may have acted")
        return None
    at.tell(f"{at.label} acted {value}")
    return at.got(value)


# --- retries


@durable.step(retry=durable.Retry(attempts=ATTEMPTS, initial=0.01, maximum=4))
async def unsteady(label: str, fails: int) -> str:
    with here().executing(label) as value:
        await here().linger()
        if here().count_attempt(label, ATTEMPTS) <= fails:
            raise ConnectionError(value)
        return value


@op("unsteady step", weight=3)
async def _unsteady(at: Place) -> Any:
    try:
        step = durable.step.options(unsteady, name=f"unsteady/{at.label}")
        value = await step(at.label, at.fixed.randint(0, ATTEMPTS))
    except ConnectionError:
        at.tell(f"{at.label} was given up")
        return None
    at.tell(f"{at.label} came to {value}")
    return at.got(value)


# --- labels


@op("label", weight=2)
async def _put_label(at: Place) -> Any:
    durable.current_run().label(**{f"label{at.fixed.randrange(4)}": at.label})


# --- compensations


async def undo(label: str) -> None:
    with here().acting(f"undo {label}"):
        await here().linger()


@durable.step(compensate=undo)
async def undoable(label: str) -> str:
    with here().executing(label) as value:
        await here().linger()
        return value


@op("undoable step", weight=2)
async def _undoable(at: Place) -> Any:
    return at.got(await undoable(at.label))


# --- children


@durable.durable
async def child(label: str, deep: int) -> str:
    """Be a run of one's own."""
    value = await durable.step.run("a child's step", _work_of_child, label)
    if deep:
        await durable.sleep(deep * 0.3)
    return str(value)


async def _work_of_child(label: str) -> str:
    with here().executing(label) as value:
        await here().linger()
        return value


@op("child", weight=2)
async def _child(at: Place) -> Any:
    run = await durable.current_run().spawn(child, f"child {at.label}", at.fixed.randint(0, 2))
    if at.fixed.random() < 0.5:
        await asyncio.sleep(0)
    try:
        value = await run
    except (RunFailed, RunCancelled) as error:
        at.tell(f"{at.label} lost its child: {type(error).__name__}")
        return None
    at.tell(f"{at.label} has from its child {value}")
    return None


@op("waits side by side", weight=2, parts=(2, 3))
async def _side_by_side(at: Place) -> Any:
    async def one(node: Node, number: int) -> Any:
        await durable.sleep(0.1 * number)
        return await play_node(node, at.told)

    return list(await asyncio.gather(*(one(n, i) for i, n in enumerate(at.node.parts))))
