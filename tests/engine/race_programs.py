"""Handlers made of what a test draws: every way of waiting and failing, in any order and nesting.

What is executed outside the journal is counted here, as a world that no crash undoes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from durable_endpoints import (
    Escalate,
    Retry,
    RunCancelled,
    RunFailed,
    SignalTimeout,
    approval,
    current_run,
    durable,
    effect,
    idempotency_key,
    sleep,
    step,
    wait_for_signal,
)

NAMES: Final = ("a", "b")
ATTEMPTS: Final = 3
HOUR: Final = 3600
BUDGET: Final = Retry(attempts=ATTEMPTS, initial=HOUR, factor=1, jitter=0)


class Done(NamedTuple):
    """One execution of a step, an effect or a compensation."""

    what: str
    run_id: str
    label: str
    key: str
    at: int  # how many crashes there had been


class Outside:
    """The world outside: what was executed, and how often it has failed."""

    def __init__(self) -> None:
        self.done: list[Done] = []
        self.crashes = 0
        self._count: dict[tuple[str, str, str], int] = defaultdict(int)

    def do(self, what: str, label: str) -> int:
        """Count one execution; return how many there have been."""
        run_id = current_run().id
        self.done.append(Done(what, run_id, label, idempotency_key(), self.crashes))
        place = (what, run_id, label)
        self._count[place] += 1
        return self._count[place]


OUTSIDE = [Outside()]


@step
async def plain(label: str) -> str:
    OUTSIDE[0].do("plain", label)
    await asyncio.sleep(0)
    return label


@step(retry=BUDGET)
async def flaky(label: str, fails: int) -> str:
    if OUTSIDE[0].do("flaky", label) <= fails:
        raise ConnectionError(label)
    return label


@effect(retry=BUDGET)
async def charge(label: str, fails: int) -> str:
    if OUTSIDE[0].do("charge", label) <= fails:
        raise ConnectionError(label)
    await asyncio.sleep(0)
    return label


@effect(on_ambiguous="fail")
async def once(label: str) -> str:
    OUTSIDE[0].do("once", label)
    await asyncio.sleep(0)
    return label


@step(retry=BUDGET)
async def odd(label: str, fails: int) -> str:
    if OUTSIDE[0].do("odd", label) <= fails:
        raise Escalate(label)
    return label


async def unbook(label: str) -> None:
    OUTSIDE[0].do("unbook", label)
    await asyncio.sleep(0)


@effect(compensate=unbook)
async def book(label: str) -> str:
    OUTSIDE[0].do("book", label)
    await asyncio.sleep(0)
    return label


@durable
async def performs(program: list[Any]) -> list[Any]:
    return await _sequence(program, "p")


async def _sequence(program: list[Any], path: str) -> list[Any]:
    return [await _perform(op, f"{path}.{number}") for number, op in enumerate(program)]


async def _perform(op: list[Any], path: str) -> Any:  # noqa: PLR0912 - one case an operation
    match op:
        case ["step"]:
            return await plain(path)
        case ["flaky", fails]:
            return await flaky(path, fails)
        case ["charge", fails]:
            return await charge(path, fails)
        case ["once"]:
            return await _told(once(path))
        case ["odd", fails]:
            return await odd(path, fails)
        case ["book"]:
            return await book(path)
        case ["sleep", seconds]:
            await sleep(seconds)
            return "slept"
        case ["signal", name, timeout]:
            try:
                return await wait_for_signal(name, timeout=timeout)
            except SignalTimeout:
                return "timeout"
        case ["ask", name]:
            return bool(await approval(name))
        case ["race", name, seconds]:
            return await _race(name, seconds)
        case ["both", first, second]:
            return list(
                await asyncio.gather(_sequence(first, f"{path}x"), _sequence(second, f"{path}y"))
            )
        case ["child", program]:
            return await _told((await current_run().spawn(performs, program)).result())
        case ["left", program]:  # a child that nobody waits for
            return (await current_run().spawn(performs, program)).id
        case ["fail"]:
            raise RuntimeError("as told")
    raise AssertionError(op)


async def _told(work: Any) -> Any:
    try:
        return await work
    except (RunCancelled, RunFailed) as error:
        return type(error).__name__
    except Exception as error:
        return f"{type(error).__name__}"


async def _race(name: str, seconds: float) -> str:
    signal = asyncio.create_task(_signal(name))
    timer = asyncio.create_task(_nap(seconds))
    done, left = await asyncio.wait([signal, timer], return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    return "signal" if signal in done else "timer"


async def _signal(name: str) -> Any:
    return await wait_for_signal(name)


async def _nap(seconds: float) -> None:
    await sleep(seconds)


names = st.sampled_from(NAMES)
seconds = st.sampled_from((0, HOUR, 5 * HOUR))
_LEAVES = st.one_of(
    st.just(["step"]),
    st.just(["book"]),
    st.just(["once"]),
    st.tuples(st.just("flaky"), st.integers(0, ATTEMPTS)).map(list),
    st.tuples(st.just("charge"), st.integers(0, ATTEMPTS)).map(list),
    st.tuples(st.just("odd"), st.integers(0, 2)).map(list),
    st.tuples(st.just("sleep"), seconds).map(list),
    st.tuples(st.just("signal"), names, st.none() | seconds).map(list),
    st.tuples(st.just("ask"), names).map(list),
    st.tuples(st.just("race"), names, seconds).map(list),
    st.just(["fail"]),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        st.tuples(st.just("both"), some, some).map(list),
        st.tuples(st.just("child"), some).map(list),
        st.tuples(st.just("left"), some).map(list),
    )


programs = st.lists(
    st.recursive(_LEAVES, _nested, max_leaves=3), min_size=1, max_size=3
)  # fmt: skip
