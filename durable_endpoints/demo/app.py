"""The demo's app: a page, a durable chat, and a way to die."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import httpx
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

from durable_endpoints import DurableMiddleware, StepFailed, durable, step
from durable_endpoints.clock import SystemClock
from durable_endpoints.demo.chat import Message, Model, ModelRefused, tokens

_HERE: Final = Path(__file__).parent
_FILES: Final = dict.fromkeys(("chat.js", "strip.js"), "text/javascript") | {"chat.css": "text/css"}

model = Model.from_environment()
started_s = SystemClock().monotonic_s()
app = FastAPI(title="durable demo", openapi_url=None)
app.add_middleware(DurableMiddleware, store=os.environ["DURABLE_DEMO_STORE"])


class Turn(BaseModel):
    """A message of the conversation."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=8000)


class Question(BaseModel):
    """The conversation so far; the question is its last message."""

    messages: list[Turn] = Field(min_length=1, max_length=20)


@step(on_interrupt="resume")
async def answer(messages: list[Message], *, recorded: Sequence[str] = ()) -> AsyncIterator[str]:
    """Record every token as it flows; after a crash, go on where the recorded ones end."""
    async for token in tokens(model, messages, recorded):
        yield token


@app.post("/chat", response_class=EventSourceResponse)
@durable
async def chat(question: Question) -> AsyncIterator[dict[str, str]]:
    """Answer a question, token by token; what the model's server refuses is told, too."""
    messages = [turn.model_dump() for turn in question.messages]
    try:
        async for token in answer(messages):
            yield {"text": token}
    except (ModelRefused, httpx.TransportError, StepFailed) as error:
        yield {"error": str(error)}


@app.post("/crash", status_code=204)
async def crash(pid: int, sec_fetch_site: Annotated[str | None, Header()] = None) -> None:
    """Kill this process as `kill -9` would: nothing is flushed, closed or said goodbye to.

    `pid` says which process is meant: a browser sends a request again when its connection
    breaks, which would kill the next process, too.
    """
    if sec_fetch_site not in (None, "same-origin", "none"):
        raise HTTPException(403, "only the demo's own page may press its button")
    if pid != os.getpid():
        raise HTTPException(409, f"process {pid} is dead already")
    os.kill(pid, signal.SIGKILL)


@app.get("/status")
async def status() -> dict[str, str | int | float | bool]:
    """Which process this is, and since when."""
    return {
        "pid": os.getpid(),
        "up_s": round(SystemClock().monotonic_s() - started_s, 3),
        "model": model.name,
        "local": model.local,
    }


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page."""
    return FileResponse(_HERE / "index.html", headers={"Cache-Control": "no-cache"})


@app.get("/{name}", include_in_schema=False)
async def part(name: str) -> FileResponse:
    """A part of the page."""
    if name not in _FILES:
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache"}
    return FileResponse(_HERE / name, media_type=_FILES[name], headers=headers)
