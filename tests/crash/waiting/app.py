"""The app behind these crash tests: every way of waiting and failing, with effects on a sink.

`STORE` is the database, `SINK` the sink's address; `DURABLE_CRASH_AT` as in points.py.
`SUSPEND_AFTER` and `TIMER_RECHECK` are in seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import httpx
from fastapi import FastAPI

from durable_endpoints import (
    DurableMiddleware,
    EffectAmbiguous,
    Escalate,
    Retry,
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
from durable_endpoints.engine import recovery, waits
from tests.crash.waiting.points import crashing_store, reach, reach_soon
from tests.crash.waiting.sink import ATTEMPTS

Answer: TypeAlias = dict[str, Any]
BUDGET = Retry(attempts=ATTEMPTS, initial=0.03, factor=1, jitter=0)
# Killed more than once a second, a server would take innocent runs for poison (I17, which has tests
# of its own).
recovery.RECOVERIES_MAX = 1000  # type: ignore[attr-defined, misc]
recovery.RECOVERY_BACKOFF_S = (0.0, *[0.05] * 5)  # type: ignore[attr-defined, assignment]
if "TIMER_RECHECK" in os.environ:  # half a minute otherwise
    waits.TIMER_RECHECK_S = float(os.environ["TIMER_RECHECK"])  # type: ignore[attr-defined]
_clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}


async def call(what: str, label: str, fails: int = 0, point: str = "call") -> Answer:
    """Act on the world outside."""
    client = _clients.setdefault(
        asyncio.get_running_loop(), httpx.AsyncClient(base_url=os.environ["SINK"], timeout=30)
    )
    reach(f"{point}.begin")
    reach_soon(f"{point}.mid")
    response = await client.post(
        f"/{what}", params={"fails": fails}, json={"run": current_run().id, "label": label},
        headers={"idempotency-key": idempotency_key()},
    )  # fmt: skip
    reach(f"{point}.done")
    response.raise_for_status()
    answer: Answer = response.json()
    return {"receipt": answer["receipt"], "count": answer["count"]}


async def receipt(what: str, label: str, fails: int = 0) -> str:
    return str((await call(what, label, fails))["receipt"])


@effect
async def charge(label: str) -> str:
    return await receipt("charge", label)


@effect(retry=BUDGET)
async def patient(label: str, fails: int) -> str:
    return await receipt("patient", label, fails)


@step(retry=BUDGET)
async def flaky(label: str, fails: int) -> str:
    return await receipt("flaky", label, fails)


@effect(on_ambiguous="fail")
async def once(label: str) -> str:
    return await receipt("once", label)


async def known(key: str, _: str) -> str:
    async with httpx.AsyncClient(base_url=os.environ["SINK"]) as client:
        response = await client.get(f"/known/{key}")
    if response.status_code == 404:
        raise LookupError(key)
    return str(response.json()["receipt"])


@effect(verify=known)
async def verified(label: str) -> str:
    return await receipt("verified", label)


@step(retry=BUDGET)
async def odd(label: str) -> str:
    if (await call("odd", label))["count"] == 1:
        raise Escalate("the first time is odd")
    return "even"


async def unbook(label: str) -> None:
    await call("unbook", label, point="undo")


@effect(compensate=unbook)
async def book(label: str) -> str:
    return await receipt("book", label)


app = FastAPI()


def endpoint(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Serve a function, durable, under its name."""
    return app.post(f"/{function.__name__}")(durable(function))


@endpoint
async def refund() -> Answer:
    first = await charge("first")
    said = await wait_for_signal("approve", type=dict[str, str])
    return {"first": first, "said": said, "second": await charge("second")}


@endpoint
async def ordered(count: int = 3) -> list[Any]:
    return [await wait_for_signal("item") for _ in range(count)]


@endpoint
async def naps() -> str:
    for _ in range(3):
        await sleep(0.06)
    return await charge("after")


@endpoint
async def nap(seconds: float, times: int = 1) -> str:
    for _ in range(times):
        await sleep(seconds)
    return "awake"


@endpoint
async def races() -> Answer:
    try:
        return {"went": await wait_for_signal("go", timeout=0.12)}
    except SignalTimeout:
        return {"went": None}


@endpoint
async def at_once() -> list[Any]:
    return list(
        await asyncio.gather(
            sleep(0.05), wait_for_signal("go"), charge("beside"), patient("beside", 1)
        )
    )


@endpoint
async def retries() -> list[str]:
    return [await flaky("step", 2), await patient("effect", 2)]


@endpoint
async def gives_up() -> str:
    return await patient("never", 1000)


@endpoint
async def at_most_once() -> str:
    try:
        return await once("once")
    except EffectAmbiguous:
        return "ambiguous"


@endpoint
async def asks_back() -> str:
    return await verified("verified")


@endpoint
async def approves() -> Answer:
    said = await approval("refund", summary="Refund of 20 €", timeout=60)
    return {"approved": said.approved, "receipt": await charge("approved")}


@endpoint
async def escalates() -> str:
    return await odd("odd")


@endpoint
async def saga(fails: bool = True) -> None:
    for what in ("flight", "hotel", "car"):
        await book(what)
    if fails:
        raise RuntimeError("no seat left")
    await wait_for_signal("never")


@durable
async def child(label: str, holds: bool) -> str:
    if holds:
        await book(label)
        await wait_for_signal("never")
    await sleep(0.03)
    return await charge(label)


@endpoint
async def parent(holds: bool = False) -> list[Any]:
    run = current_run()
    children = [await run.spawn(child, label, holds) for label in ("one", "two")]
    return [await one for one in children]


app.add_middleware(
    DurableMiddleware, store=crashing_store(os.environ["STORE"]), operator=lambda _: True,
    suspend_after=float(os.environ.get("SUSPEND_AFTER", "0")),
)  # fmt: skip
