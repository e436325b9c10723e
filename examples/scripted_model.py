"""A scripted model: an OpenAI-compatible server that streams a fixed text. There is no AI in it.

For trying the examples without a model, and for tests: the same question always gets the same
words, one every --delay seconds. It goes on from an unfinished last assistant message, as model
servers do ("prefill"), and counts what it was asked for at GET /stats.

    python scripted_model.py --port 8951 --delay 0.05
    OPENAI_BASE_URL=http://127.0.0.1:8951/v1 durable run fastapi_chat:app
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN = re.compile(r"\s*\S+")
SENTENCES = (
    "A journal is a list of things that have happened, and nothing that has happened is undone.",
    "The keeper wrote down every ship that passed, so the next keeper knew what the sea had done.",
    "When the lamp went out at midnight, the book was still there in the morning.",
    "Whoever reads the last line knows where to go on.",
    "A promise that is written before it is spoken survives the one who gave it.",
    "The storm took the boat, but not the letter that was already on the shore.",
    "Nobody on the mainland noticed that the watch had changed in the middle of a word.",
    "What was shown was kept, and what was kept could be shown again.",
    "There were two lighthouses and one light; the ships could not tell which keeper was awake.",
    "A lost hour costs little when the minutes before it are safe.",
)


def reply(messages: list[dict[str, Any]], words: int = 120) -> str:
    """Return the answer to the last user message: `words` words, the same each time."""
    question = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    choose = random.Random(question)
    text = [f"You asked: “{question[:80].strip()}”"]
    while sum(len(sentence.split()) for sentence in text) < words:
        text.append(choose.choice(SENTENCES))
    return " ".join(" ".join(text).split()[:words])


async def tokens(
    messages: list[dict[str, Any]], *, delay_s: float = 0.05, words: int = 120
) -> AsyncIterator[str]:
    """Yield up to `words` words, from where an unfinished assistant message ends."""
    said = str(messages[-1]["content"]) if messages[-1]["role"] == "assistant" else ""
    text = reply(messages, words + len(said.split()))
    for token in TOKEN.findall(text.removeprefix(said)):
        await asyncio.sleep(delay_s)
        yield token


def create_app(delay_s: float = 0.05) -> Starlette:
    """Return the server's app; `delay_s` is the time one word takes, in seconds."""
    stats = {"calls": 0, "tokens": 0}

    async def completions(request: Request) -> Response:
        body = await request.json()
        words = int(body.get("max_tokens") or 120)
        stats["calls"] += 1
        if not body.get("stream"):
            message = {"role": "assistant", "content": reply(body["messages"], words)}
            return JSONResponse(_answer("chat.completion", {"message": message}, "stop"))

        async def chunks() -> AsyncIterator[str]:
            async for token in tokens(body["messages"], delay_s=delay_s, words=words):
                stats["tokens"] += 1
                yield _sse(_answer("chat.completion.chunk", {"delta": {"content": token}}, None))
            yield _sse(_answer("chat.completion.chunk", {"delta": {}}, "stop"))
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def show_stats(_: Request) -> Response:
        return JSONResponse(stats)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/stats", show_stats),
        ]
    )


def _answer(kind: str, choice: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choices = [{"index": 0, "finish_reason": finish, **choice}]
    return {"id": "scripted", "object": kind, "created": 0, "model": "scripted", "choices": choices}


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8951)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds a word")
    options = parser.parse_args()
    uvicorn.run(
        create_app(options.delay), host=options.host, port=options.port, log_level="warning"
    )
