"""A durable app that asks models with their own libraries, for the crash tests.

POST /ask {"kind", "tag", "n", "pace", "until"}: a plan in one piece, an answer in tokens, a
question in one piece; each is counted by the provider under the tag.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, StreamInterrupted, durable, step
from durable_endpoints.llm import durable_client
from tests.llm import provider

PROVIDER = os.environ.get("PROVIDER", "http://127.0.0.1:1")
http = durable_client(llm_hosts=["127.0.0.1:*"])
openai = AsyncOpenAI(base_url=f"{PROVIDER}/v1", api_key="sk-secret", http_client=http)
claude = AsyncAnthropic(base_url=PROVIDER, api_key="sk-secret", http_client=http)


def asking(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def chat(model: str) -> AsyncIterator[str]:
    stream = await openai.chat.completions.create(
        model=model, messages=asking("chat"), stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


async def messages(model: str) -> AsyncIterator[str]:
    async with claude.messages.stream(
        model=model, messages=asking("messages"), max_tokens=100
    ) as stream:
        async for text in stream.text_stream:
            yield text


async def responses(model: str, *, background: bool = False) -> AsyncIterator[str]:
    stream = await openai.responses.create(
        model=model, input="responses", stream=True, background=background
    )
    async for event in stream:
        if event.type == "response.output_text.delta":
            yield event.delta


def background(model: str) -> AsyncIterator[str]:
    return responses(model, background=True)


KINDS = {"chat": chat, "messages": messages, "responses": responses, "background": background}


async def whole(model: str) -> str:
    answer = await openai.chat.completions.create(model=model, messages=asking("whole"))
    return str(answer.choices[0].message.content)


async def told(path: str) -> None:
    """Wait until the test says so."""
    while not Path(path).exists():
        await asyncio.sleep(0.01)


@durable
async def ask(request: Request) -> Response:
    asked: dict[str, Any] = await request.json()
    tag, pace = asked["tag"], asked.get("pace", 5)

    async def events() -> AsyncIterator[dict[str, str]]:
        yield {"event": "plan", "data": await whole(f"m?n=2&key={tag}/plan")}
        model = f"m?n={asked.get('n', 20)}&pace={pace}&key={tag}/answer"
        try:
            async for text in KINDS[asked["kind"]](model):
                yield {"event": "text", "data": text}
        except StreamInterrupted:
            yield {"event": "interrupted", "data": ""}
        if asked.get("until"):
            await step.run("told", told, asked["until"])
        yield {"event": "question", "data": await whole(f"m?n=3&key={tag}/question")}

    return EventSourceResponse(events())


async def warm() -> None:
    """Use everything once: the libraries make half of what they need when it is first used."""
    global openai, claude
    own = openai, claude
    transport = httpx2.ASGITransport(provider.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://warm") as client:
        openai = AsyncOpenAI(base_url="http://warm/v1", api_key="sk", http_client=client)
        claude = AsyncAnthropic(base_url="http://warm", api_key="sk", http_client=client)
        for kind in KINDS.values():
            assert [text async for text in kind("m?n=2")] == ["w0 ", "w1 "]
        await whole("m")
    openai, claude = own


inner = Starlette(routes=[Route("/ask", ask, methods=["POST"])])
app = DurableMiddleware(inner, store=os.environ.get("STORE", "sqlite:///durable.db"))
