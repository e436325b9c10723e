"""The app behind the tests of waiting over HTTP: runs that wait for signals, events and persons.

Its working directory is the test's. What it did is a line of `notes`; a link that it was to send is
the file `link-<run id>`. `WAITING_SUSPEND_AFTER`, `WAITING_HEARTBEAT_S`, `WAITING_SECRETS` and
`WAITING_STACK` set what their names say; with `WAITING_PRINCIPAL=1` a request belongs to whom its
`x-user` header names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import BackgroundTasks, Body, Depends, FastAPI
from fastapi.sse import EventSourceResponse as NativeEvents
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from durable_endpoints import (
    DurableMiddleware,
    Escalate,
    Retry,
    SignalTimeout,
    approval,
    current_run,
    durable,
    effect,
    send_signal,
    sleep,
    step,
    wait_for_signal,
)
from durable_endpoints.asgi import tail
from durable_endpoints.engine.waiting import ApprovalRequest
from durable_endpoints.limits import HEARTBEAT_S
from tests.support.stores import store_address

app = FastAPI()


def note(line: str) -> None:
    """Leave a line of evidence."""
    with Path("notes").open("a") as file:
        file.write(line + "\n")


async def held(name: str) -> None:
    """Wait for a file of the test's."""
    while name and not Path(name).exists():
        await asyncio.sleep(0.005)


async def remember(request: ApprovalRequest) -> None:
    """Send the link to whom it concerns: here, to the test."""
    Path(f"link-{request.run_id}").write_text(request.path)
    note(f"link {request.name}")
    await held(f"hold-{request.name}" if request.name.startswith("slowly") else "")


# --- signals


@app.post("/json")
@durable
async def one(
    name: str = "go", timeout: float | None = None, once: bool = False, then: str = ""
) -> dict[str, Any]:
    """A response in one piece, some time."""
    note(f"json {current_run().id}")
    try:
        got = await wait_for_signal(name, timeout=timeout, once=once)
    except SignalTimeout as error:
        got = f"timeout {error.name}"
    if then:
        await wait_for_signal(then)
    return {"got": got}


@app.post("/stream")
@durable
async def several(name: str = "go", waits: int = 1, first: bool = True) -> Response:
    """An event stream that stands still in its middle."""

    async def body() -> AsyncIterator[str]:
        if first:
            yield "event: word\ndata: asked\n\n"
        for number in range(waits):
            data = await wait_for_signal(name)
            note(f"got {number}")
            yield f"data: {orjson.dumps(data).decode()}\n\n"
        yield "data: end\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


async def resource() -> AsyncIterator[str]:
    note("resource open")
    try:
        yield "resource"
    finally:
        note("resource closed")


@app.post("/native", response_class=NativeEvents)
@durable
async def native(resource: Annotated[str, Depends(resource)]) -> AsyncIterator[dict[str, Any]]:
    """What FastAPI makes of a generator, with a dependency that has an end."""
    yield {"word": resource}
    yield {"word": await wait_for_signal("go")}


class Amount(BaseModel):
    value: int
    currency: str = "EUR"


@app.post("/typed")
@durable
async def typed() -> dict[str, Any]:
    amount: Amount = await wait_for_signal("amount", type=Amount)
    return {"value": amount.value, "currency": amount.currency}


@app.post("/busy")
@durable
async def busy(hold: str) -> dict[str, Any]:
    """Comes to its waits late."""
    await step.run("work", held, hold)
    return {"got": [await wait_for_signal("go"), await wait_for_signal("go")]}


@app.post("/match/{name}")
@durable
async def matched(name: str, match: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    times = int(match.pop("times", 1))
    return {"got": [await wait_for_signal(name, match=match) for _ in range(times)]}


@app.post("/tells")
@durable
async def tells(run_id: str, name: str) -> dict[str, bool]:
    await send_signal(run_id, name, {"from": "a run"})
    return {"told": True}


@app.post("/background")
@durable
async def background(tasks: BackgroundTasks) -> dict[str, bool]:
    async def later() -> None:
        note(f"background {await wait_for_signal('go')}")

    tasks.add_task(later)
    return {"accepted": True}


@app.post("/sleeps")
@durable
async def sleeps(seconds: float) -> dict[str, str]:
    await sleep(seconds)
    return {"slept": "well"}


# --- persons


class Question(BaseModel):
    name: str = "refund"
    summary: str = ""
    timeout: float | None = None
    then: str = ""  # a signal to wait for when it is decided
    notify: bool = True


@app.post("/approval")
@durable
async def asks(question: Question) -> dict[str, Any]:
    try:
        decision = await approval(
            question.name, summary=question.summary, timeout=question.timeout,
            notify=remember if question.notify else None,
        )  # fmt: skip
    except SignalTimeout as error:
        return {"timeout": error.name}
    if question.then:
        await wait_for_signal(question.then)
    return {
        "approved": decision.approved,
        "by": decision.by,
        "at": decision.at.isoformat(),
        "comment": decision.comment,
    }


@step(retry=Retry(attempts=3, initial=0.01))
async def judge(claim: str) -> str:
    note(f"judge {claim}")
    if not Path("judged").exists():
        raise Escalate(f"who can judge {claim}?")
    return "just"


@app.post("/escalates")
@durable
async def escalates(claim: str = "this") -> dict[str, Any]:
    return {"verdict": await judge(claim)}


@effect(on_ambiguous="ask")
async def pay(order: str) -> str:
    note(f"pay {order}")
    await held(f"paid-{order}")
    return "paid"


@app.post("/pays")
@durable
async def pays(order: str) -> dict[str, Any]:
    return {"paid": await pay(order)}


# --- giving up


@step(retry=Retry(attempts=2, initial=0.01))
async def fetch(what: str) -> str:
    note(f"fetch {what}")
    await held(f"go-{what}" if what.startswith("slowly") else "")
    if not Path(f"mended-{what}").exists():
        raise ConnectionError("the upstream is away")
    return what


def begun(what: str) -> str:
    note(f"first {what}")
    return what


@app.post("/gives-up")
@durable
async def gives_up(what: str) -> dict[str, Any]:
    await step.run("first", begun, what)
    return {"fetched": await fetch(what)}


# --- the middlewares


class Marking(BaseHTTPMiddleware):
    """The kind of middleware that runs the app in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        answer.headers["x-marked"] = "yes"
        return answer


@app.get("/plain")
async def plain() -> Response:
    return JSONResponse({"plain": True})


def stack() -> None:
    """Add the middlewares from the inside out; `durable` stands for ours."""
    environ = os.environ
    vars(tail)["HEARTBEAT_S"] = float(environ.get("WAITING_HEARTBEAT_S", HEARTBEAT_S))
    for name in environ.get("WAITING_STACK", "durable").split(","):
        if name == "base":
            app.add_middleware(Marking)
        elif name == "gzip":
            app.add_middleware(GZipMiddleware, minimum_size=10)
        else:
            app.add_middleware(
                DurableMiddleware,
                store=store_address(),
                suspend_after=float(environ.get("WAITING_SUSPEND_AFTER", "0")),
                signing_secrets=environ.get("WAITING_SECRETS", "").split(),
                principal=(
                    (lambda it: it.headers.get("x-user"))
                    if "WAITING_PRINCIPAL" in environ
                    else None
                ),
            )


stack()
