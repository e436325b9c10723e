"""The app behind the tests of the console: runs of every kind and state.

Its working directory is the test's. A handler told to `hold` waits for the file of that name.
With `CONSOLE_AUTH=1` the header `x-role` says who somebody is to the console.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from starlette.requests import HTTPConnection

from durable_endpoints import (
    DurableMiddleware,
    Escalate,
    Retry,
    approval,
    current_run,
    durable,
    effect,
    emit,
    sleep,
    step,
    wait_for_signal,
)
from durable_endpoints.asgi.routes import ControlRoutes
from durable_endpoints.llm import durable_client


def role_of(connection: HTTPConnection) -> Any:
    """Say who somebody is to the console."""
    role = connection.headers.get("x-role")
    return (role, connection.headers.get("x-name", "somebody")) if role else None


class Middleware(DurableMiddleware):
    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        if os.environ.get("CONSOLE_AUTH"):
            self._control = ControlRoutes(self._host, console_auth=role_of)


app = FastAPI()
app.add_middleware(
    Middleware, principal=lambda connection: connection.headers.get("x-user"),
    prices={"tiny-*": (2.0, 10.0)},
)  # fmt: skip
logging.getLogger("durable_endpoints.audit").setLevel(logging.INFO)
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")


async def held(name: str) -> None:
    """Wait for a file of the test's."""
    while name and not Path(name).exists():
        await asyncio.sleep(0.005)


@step
async def search(query: str) -> list[str]:
    await asyncio.sleep(0.02)
    return [f"{query}: document {n}" for n in range(3)]


@step
async def read(document: str) -> str:
    await asyncio.sleep(0.01 + len(document) % 5 / 200)
    return document.upper()


@step
async def answer(prompt: str, hold: str = "") -> AsyncIterator[str]:
    for word in f"An answer to the question {prompt!r}, word by word.".split():
        yield word + " "
        await asyncio.sleep(0.003)
    await held(hold)
    yield "The end."


@effect
async def charge(order: int) -> dict[str, int]:
    await asyncio.sleep(0.01)
    return {"order": order, "cents": 1250}


@step(retry=Retry(attempts=3, initial=0.02))
async def flaky(name: str) -> str:
    file = Path(f"flaky-{name}")
    tries = len(file.read_text()) if file.exists() else 0
    file.write_text("x" * (tries + 1))
    if tries < 2:
        raise ConnectionError("the provider hung up")
    return "at last"


async def branch(document: str) -> str:
    text = await read(document)
    return await step.run("score", lambda text: f"{text} ({len(text)})", text)


@app.post("/ask", response_class=EventSourceResponse)
@durable(version="3")
async def ask(q: str = "why?", hold: str = "") -> AsyncIterator[dict[str, str]]:
    documents = await search(q)
    found = await asyncio.gather(*(branch(document) for document in documents))
    emit({"documents": len(found)}, event="progress")
    await flaky(current_run().id)
    async for token in answer(q, hold):
        yield {"token": token}
    await charge(7)


@app.post("/fail")
@durable
async def fail(reason: str = "no such order") -> None:
    await search("orders")
    raise ValueError(reason)


@app.post("/approve")
@durable
async def approve(order: int = 7) -> dict[str, Any]:
    await search("order")
    decision = await approval(
        "refund", summary=f"Refund order {order}: 12.50 € to Ada?", timeout=timedelta(days=3)
    )
    return {"approved": bool(decision), "by": decision.by, "comment": decision.comment}


@app.post("/sleepy")
@durable
async def sleepy() -> dict[str, str]:
    await search("news")
    await sleep(timedelta(hours=6))
    return {"slept": "well"}


@app.post("/webhook")
@durable
async def webhook() -> dict[str, Any]:
    return {"data": await wait_for_signal("payment", timeout=timedelta(minutes=30))}


@app.post("/many")
@durable
async def many(n: int = 100) -> dict[str, int]:
    total = 0
    for number in range(n):
        total += await step.run(("fetch", "parse", "store")[number % 3], _double, number)
    return {"total": total}


async def _double(number: int) -> int:
    if number % 100 == 0:
        await asyncio.sleep(0.001)
    return 2 * number


@step(retry=Retry(attempts=1))
async def fragile(name: str) -> str:
    if not Path(f"mended-{name}").exists():
        raise ConnectionError("the provider hung up")
    return "mended"


@app.post("/dies")
@durable
async def dies() -> dict[str, str]:
    await search("orders")
    return {"fragile": await fragile(current_run().id)}


@step(retry=Retry(attempts=2))
async def doubtful(name: str) -> str:
    if not Path(f"mended-{name}").exists():
        raise Escalate("is this address right?")
    return "mended"


@app.post("/decide")
@durable
async def decide() -> dict[str, str]:
    return {"doubtful": await doubtful(current_run().id)}


def provider(request: httpx.Request) -> httpx.Response:
    """A model's provider that answers with figures, or without."""
    model = json.loads(request.content)["model"]
    details = {"cached_tokens": 200}
    usage = {"prompt_tokens": 1200, "completion_tokens": 345, "prompt_tokens_details": details}
    answer = {"model": model, "usage": usage} if model != "silent" else {"model": model}
    return httpx.Response(200, json=answer)


models = durable_client(library=httpx, transport=httpx.MockTransport(provider))


@app.post("/models")
@durable(labels={"kind": "model"})
async def ask_models(request: Request) -> dict[str, int]:
    asked = await request.json()
    for model in asked:
        body = {"model": model, "messages": [{"role": "user", "content": "why?"}]}
        await models.post("http://models.example/v1/chat/completions", json=body)
    return {"asked": len(asked)}


@app.post("/labelled")
@durable
async def labelled(request: Request) -> dict[str, str]:
    run = current_run()
    run.label(**await request.json())
    await search("labels")
    return dict(run.labels)


@app.post("/echo")
@durable
async def echo(request: Request) -> JSONResponse:
    text = (await request.body()).decode()
    seen = "".join(c for c in text if c >= " " and c != "\x7f")  # labels hold no controls
    current_run().label(**{f"a {seen[:60]}".replace(":", ";"): seen[-200:], "text": seen[:200]})
    await step.run(f"step {text}"[:200], _same, text)
    emit(text, event="said")
    with contextlib.suppress(ValueError):
        await step.run("raises", _raise, text)
    return JSONResponse({"text": text}, headers={"x-text": text.encode().hex()})


async def _same(text: str) -> dict[str, str]:
    return {"text": text, text[:50]: "as a key"}


async def _raise(text: str) -> None:
    raise ValueError(text)
