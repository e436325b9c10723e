"""The app behind the tests of clients: streams that can be held open, killed and compared.

Its working directory is the test's: `durable.db`, and the files that tell the two of each other:
a stream that is asked to `hold` at an item waits there for the file `release`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable, step

PAGES = Path(__file__).parents[1] / "browser"
# What is easily lost on the way: line ends, spaces, nothing at all, other alphabets.
TEXTS = ("plain ", "two\nlines", " leading", "", "é漢😀 ", "colon: ", '{"json": [1]}', "\n")


def text_of(number: int) -> str:
    """Return the text of item `number`."""
    return f"{number}:{TEXTS[number % len(TEXTS)]}" if number % 8 != 3 else ""


async def _ask(request: Request) -> dict[str, Any]:
    asked: dict[str, Any] = {"n": 10, "pause_ms": 0, "hold": -1, "status": 200}
    asked |= {name: int(value) for name, value in request.query_params.items() if name in asked}
    body = await request.body()
    return asked | (await request.json() if body else {})


async def _pause(asked: dict[str, Any], number: int) -> None:
    while number == asked["hold"] and not Path("release").exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(asked["pause_ms"] / 1000)


@step(on_interrupt="resume")
async def items(asked: dict[str, Any], recorded: list[str] | None = None) -> AsyncIterator[str]:
    for number in range(len(recorded or []), asked["n"]):
        await _pause(asked, number)
        yield text_of(number)


@step
async def attempts(asked: dict[str, Any]) -> AsyncIterator[str]:
    with Path("attempts").open("a") as file:
        file.write("x")
    attempt = len(Path("attempts").read_text())
    for number in range(asked["n"]):
        await _pause(asked, number)
        yield f"[{attempt}.{number}]"


@step
async def held(asked: dict[str, Any]) -> str:
    with Path("attempts").open("a") as file:
        file.write("x")
    await _pause(asked, 0)
    return "kept"


@durable
async def chat(request: Request) -> Response:
    """Events without ids of the app's own."""
    asked = await _ask(request)
    return EventSourceResponse({"data": text} async for text in items(asked))


@durable
async def again(request: Request) -> Response:
    """A stream that starts anew after a crash: what was shown is taken back."""
    asked = await _ask(request)

    async def body() -> AsyncIterator[dict[str, str]]:
        yield {"data": "before "}
        async for text in attempts(asked):
            yield {"data": text}
        yield {"data": " after"}

    return EventSourceResponse(body())


@durable
async def named(request: Request) -> Response:
    """Events with types and ids of the app's own."""
    asked = await _ask(request)

    async def body() -> AsyncIterator[dict[str, str]]:
        number = 0
        async for text in items(asked):
            yield {"data": text, "event": f"kind{number % 3}", "id": f"own-{number}"}
            number += 1

    return EventSourceResponse(body())


@durable
async def plain(request: Request) -> Response:
    """A text that is no event stream."""
    asked = await _ask(request)
    return StreamingResponse((text async for text in items(asked) if text), media_type="text/plain")


@durable
async def torn(request: Request) -> Response:
    """A text whose chunks are no texts by themselves."""
    encoded = "é\r漢😀".encode()
    chunks = [encoded[at : at + 1] for at in range(len(encoded))]

    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return StreamingResponse(body(), media_type="text/plain")


@durable
async def answer(request: Request) -> Response:
    """A JSON answer with the status that was asked for."""
    asked = await _ask(request)
    return JSONResponse({"value": await held(asked)}, status_code=asked["status"])


@durable
async def fails(request: Request) -> Response:
    """Shows something, then fails."""
    asked = await _ask(request)

    async def body() -> AsyncIterator[dict[str, str]]:
        async for text in items(asked):
            yield {"data": text}
        raise RuntimeError("the third wheel came off")

    return EventSourceResponse(body())


async def undurable(request: Request) -> Response:
    """Not a durable run."""
    asked = await _ask(request)
    with Path("attempts").open("a") as file:
        file.write("x")
    return JSONResponse({"plain": True}, status_code=asked["status"])


async def page(request: Request) -> Response:
    """A page of the browser tests."""
    return FileResponse(PAGES / f"{Path(request.path_params['name']).name}.html")


app = Starlette(
    routes=[
        *(
            Route(f"/{endpoint.__name__}", endpoint, methods=["GET", "POST"])
            for endpoint in (chat, again, named, plain, torn, answer, fails, undurable)
        ),
        Route("/page/{name}", page),
    ],
    middleware=[Middleware(DurableMiddleware, store="sqlite:///durable.db")],
)
