"""A chat endpoint on Starlette whose answer survives kill -9.

    cd examples
    durable run starlette_chat:app
    curl -N 127.0.0.1:8000/chat -d '{"prompt": "What is a journal?"}'

Kill the server while it talks (kill -9), start it again, and get the rest of the same answer:

    durable attach last

It talks to the model at OPENAI_BASE_URL; without one, the words are scripted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import chatmodel
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable, step


@step(on_interrupt="resume")
async def answer(prompt: str, *, recorded: Sequence[str] = ()) -> AsyncIterator[str]:
    """Every token is recorded as it flows. After a crash, `recorded` holds the ones so far."""
    async for token in chatmodel.stream([{"role": "user", "content": prompt}], recorded):
        yield token


@durable
async def chat(request: Request) -> Response:
    prompt = (await request.json())["prompt"]
    return EventSourceResponse({"data": token} async for token in answer(prompt))


app = Starlette(
    routes=[Route("/chat", chat, methods=["POST"])],
    middleware=[Middleware(DurableMiddleware, store="sqlite:///starlette_chat.db")],
)
