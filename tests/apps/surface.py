"""The app behind the tests of the ASGI surface: one route for everything an app may do.

Its working directory is the test's. A handler told to `hold` waits for the file of that name; what
it did is a line of `notes`. `SURFACE_STACK` names the middlewares around and below ours; with
`SURFACE_PRINCIPAL=1` a request belongs to whom its `x-user` header names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Form, HTTPException, UploadFile
from fastapi.sse import EventSourceResponse as NativeEvents
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.websockets import WebSocket

from durable_endpoints import DurableMiddleware, current_run, durable, step
from tests.support.stores import store_address

BIG = bytes(range(256)) * 2048  # half a mebibyte
COOKIE = "sid=set-cookie-secret-5150; HttpOnly; Path=/"


def note(line: str) -> None:
    """Leave a line of evidence."""
    with Path("notes").open("a") as file:
        file.write(line + "\n")


async def held(name: str) -> None:
    """Wait for a file of the test's."""
    while name and not Path(name).exists():
        await asyncio.sleep(0.005)


class Trouble(Exception):
    """Has a handler of its own."""


class Question(BaseModel):
    text: str


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    note("lifespan start")
    yield {"greeting": "hello from the lifespan"}
    note("lifespan stop")


app = FastAPI(lifespan=lifespan)


# --- answers in one piece


@step
async def shout(text: str, hold: str = "") -> str:
    note(f"shout {text}")
    await held(hold)
    return text.upper()


@step
async def sign_in(user: str, password: str, options: dict[str, str]) -> str:
    return user


@step
def shout_plainly(text: str) -> str:
    note(f"shout {text}")
    return text.upper()


@app.post("/json")
@durable
async def answer(question: Question, hold: str = "") -> dict[str, Any]:
    return {"answer": await shout(question.text, hold), "run": current_run().id}


@app.get("/json")
@durable
async def read_answer(text: str = "hi", hold: str = "") -> dict[str, Any]:
    return {"answer": await shout(text, hold)}


@app.post("/def")
@durable
def answer_plainly(question: Question) -> dict[str, Any]:
    return {"answer": shout_plainly(question.text), "run": current_run().id}


@app.get("/sign-in")
@durable
async def signed_in() -> str:
    return await sign_in("ann", "plant-positional-13", options={"api_key": "plant-nested-12"})


@app.get("/plain")
async def not_durable() -> dict[str, bool]:
    return {"plain": True}


@app.get("/status/{code}")
@durable
async def status(code: int) -> Response:
    return Response(status_code=code, headers={"x-own": "kept"})


@app.get("/file")
@durable
async def file() -> Response:
    Path("big.bin").write_bytes(BIG)
    return FileResponse("big.bin", media_type="application/octet-stream", filename="big.bin")


@app.get("/greeting")
@durable
async def greeting(request: Request, hold: str = "") -> dict[str, str]:
    await shout("greeting", hold)
    return {"greeting": request.state.greeting, "app": type(request.app).__name__}


class Counted(HTTPEndpoint):
    """A class-based endpoint, marked method by method."""

    @durable
    async def get(self, request: Request) -> Response:
        hold = request.query_params.get("hold", "")
        return JSONResponse({"method": "get", "answer": await shout("class", hold)})

    async def delete(self, request: Request) -> Response:
        return JSONResponse({"method": "delete"})


# The second is durable by a path pattern, whatever the method.
app.router.routes += [Route("/class", Counted), Route("/unchanged", Counted)]


# --- streams


async def words(n: int, hold: str, at: int) -> AsyncIterator[str]:
    for number in range(n):
        if number == at:
            await held(hold)
        yield f"word {number}"


stream_step = step(words)


@app.get("/events/native", response_class=NativeEvents)
@durable
async def native(n: int = 5, hold: str = "", at: int = 0) -> AsyncIterator[dict[str, str]]:
    async for word in stream_step(n, hold, at):
        yield {"word": word}


@app.api_route("/events/starlette", methods=["GET", "POST"])
@durable
async def sse_starlette(n: int = 5, hold: str = "", at: int = 0) -> Response:
    return EventSourceResponse({"data": word} async for word in stream_step(n, hold, at))


@app.get("/events/own")
@durable
async def own_ids(n: int = 5, hold: str = "", at: int = 0) -> Response:
    items = stream_step(n, hold, at)
    return EventSourceResponse({"data": word, "id": f"own-{word[5:]}"} async for word in items)


@app.get("/events/hand")
@durable
async def by_hand(n: int = 5, hold: str = "", at: int = 0) -> Response:
    blocks = (f"event: word\ndata: {word}\n\n" async for word in stream_step(n, hold, at))
    return StreamingResponse(blocks, media_type="text/event-stream")


@app.get("/text")
@durable
async def text(n: int = 5, hold: str = "", at: int = 0) -> Response:
    lines = (f"{word}\n" async for word in stream_step(n, hold, at))
    return StreamingResponse(lines, media_type="text/plain")


@app.get("/bulk")
@durable
async def bulk(chunks: int = 64) -> Response:
    async def body() -> AsyncIterator[bytes]:
        for number in range(chunks):
            yield bytes([number % 256]) * 65536
        note("bulk made")

    return StreamingResponse(body(), media_type="application/octet-stream")


# --- what surrounds a handler


@app.post("/upload")
@durable
async def upload(title: Annotated[str, Form()], file: UploadFile, hold: str = "") -> dict[str, Any]:
    data = await file.read()
    await shout("upload", hold)
    return {"title": title, "name": file.filename, "size": len(data), "tail": data[-3:].hex()}


@app.post("/echo")
@durable
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


@app.get("/cookie")
@durable
async def cookie(request: Request) -> Response:
    seen = {"cookies": sorted(request.cookies), "query": sorted(request.query_params)}
    return JSONResponse(seen, headers={"set-cookie": COOKIE})


@app.post("/background")
@durable
async def background(tasks: BackgroundTasks, hold: str = "") -> dict[str, bool]:
    async def later() -> None:
        await shout("background", hold)
        note("background done")

    tasks.add_task(later)
    return {"accepted": True}


async def resource() -> AsyncIterator[str]:
    note("resource open")
    try:
        yield "resource"
    finally:
        note("resource closed")


def plain_resource() -> Iterator[str]:
    note("plain resource open")
    yield "plain resource"
    note("plain resource closed")


@app.get("/depends")
@durable
async def depends(
    first: Annotated[str, Depends(resource)],
    second: Annotated[str, Depends(plain_resource)],
    hold: str = "",
) -> Response:
    async def body() -> AsyncIterator[str]:
        yield f"data: {first}\n\n"
        await held(hold)
        note("stream uses its resource")
        yield f"data: {second}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


# --- what goes wrong


@app.exception_handler(Trouble)
async def in_trouble(request: Request, error: Trouble) -> Response:
    return JSONResponse({"trouble": str(error)}, status_code=418)


async def odd_items() -> AsyncIterator[Any]:
    yield "fine"
    yield {1, 2}


@app.get("/fails/{how}")
@durable
async def fails(how: str) -> Response:
    if how == "http":
        raise HTTPException(409, "no", headers={"x-why": "because"})
    if how == "handled":
        raise Trouble("in the handler")
    if how == "crash":
        raise RuntimeError("the wheel came off")
    if how == "unencodable":
        await step.run("weigh", lambda: {"weight": object()})
    if how == "unencodable-item":
        listed = step.stream("list", odd_items)
        return EventSourceResponse({"data": str(item)} async for item in listed)

    async def body() -> AsyncIterator[str]:
        yield "data: one\n\n"
        raise RuntimeError("the wheel came off on the way")

    return StreamingResponse(body(), media_type="text/event-stream")


@app.get("/upstream")
@durable
async def upstream(url: str) -> Response:
    """Hands on what another server streams, to see that a cancel closes the call."""

    async def lines() -> AsyncIterator[str]:
        try:
            async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", url) as answer:
                async for line in answer.aiter_lines():
                    yield line
        finally:
            note("upstream call closed")

    return EventSourceResponse({"data": line} async for line in step.stream("call", lines))


# --- other apps inside, and other connections


async def inside(request: Request) -> Response:
    await shout("inside", request.query_params.get("hold", ""))
    where = {"url": str(request.url), "link": str(request.url_for("inside"))}
    return JSONResponse({**where, "root_path": request.scope["root_path"]})


async def inside_events(request: Request) -> Response:
    asked = {"n": "3", "hold": "", "at": "0", **request.query_params}
    items = stream_step(int(asked["n"]), asked["hold"], int(asked["at"]))
    return EventSourceResponse({"data": word} async for word in items)


router = APIRouter(prefix="/api")
marked = [
    Route("/inside", durable(inside), name="inside"),
    Route("/events", durable(inside_events)),
]
app.router.routes.append(Mount("/sub", Starlette(routes=marked)))


@router.get("/items/{item}")
@durable
async def read_item(item: int) -> dict[str, int]:
    return {"item": item}


app.include_router(router, prefix="/v1")


@app.websocket("/ws")
async def ws(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text((await socket.receive_text()).upper())
    await socket.close()


# --- the middlewares


class Marking(BaseHTTPMiddleware):
    """The kind of middleware that wraps `receive` and streams the response through a queue."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        answer.headers["x-marked"] = "yes"
        return answer


LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "base": (Marking, {}),
    "gzip": (GZipMiddleware, {"minimum_size": 100}),
    "cors": (CORSMiddleware, {"allow_origins": ["*"]}),
}


def stack() -> None:
    """Add the middlewares from the inside out; `durable` stands for ours."""
    hook = (lambda it: it.headers.get("x-user")) if "SURFACE_PRINCIPAL" in os.environ else None
    for name in os.environ.get("SURFACE_STACK", "durable").split(","):
        if name == "durable":
            store = store_address()
            app.add_middleware(
                DurableMiddleware, store=store, routes=["/unchanged"], principal=hook
            )
        else:
            layer, options = LAYERS[name]
            app.add_middleware(layer, **options)


stack()
