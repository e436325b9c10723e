"""A chat with the openai package itself: its calls are steps without the handler saying so.

    pip install 'durable-endpoints[openai]'
    durable run llm_chat:app
    curl -N 127.0.0.1:8000/chat --json '{"question": "Why tea?"}'
    curl -N 127.0.0.1:8000/chat?durable_events=1 --json '{"question": "Why tea?"}'   # see below

What to notice:
- `durable_client()` is all that makes it durable: every answer is recorded as it flows, and after a
  crash the recorded ones are not asked for again.
- The answer that a crash cut in two: a reader that understands rewinds (our clients, or
  `?durable_events=1`) is told to drop the first half, and gets a new answer. Another one keeps what
  it has seen, so the handler is told by `StreamInterrupted`. Nobody sees two halves of two answers.
- With OpenAI's Responses and `background=True` there is no such choice to make: it goes on.

It talks to the model at OPENAI_BASE_URL (OPENAI_API_KEY, MODEL).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from durable_endpoints import DurableMiddleware, StreamInterrupted, durable
from durable_endpoints.llm import current_usage, durable_client

app = FastAPI(title="A chat with the openai package")
app.add_middleware(DurableMiddleware, store="sqlite:///llm_chat.db")
client = AsyncOpenAI(http_client=durable_client())
MODEL = os.environ.get("MODEL", "gpt-5-mini")


class Question(BaseModel):
    question: str = Field(max_length=2000)


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@app.post("/chat", response_class=EventSourceResponse)
@durable
async def chat(body: Question) -> AsyncIterator[dict[str, Any]]:
    title = await client.chat.completions.create(
        model=MODEL, messages=asking(f"A title for this question, in three words: {body.question}")
    )
    yield {"title": title.choices[0].message.content}
    try:
        stream = await client.chat.completions.create(
            model=MODEL, messages=asking(body.question), stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield {"text": chunk.choices[0].delta.content}
    except StreamInterrupted:
        yield {"error": "the server was restarted in the middle of this answer; ask again"}
    used = current_usage()
    saved, spent = used.saved.total, used.spent.total
    # What came from the journal differs from run to run: log it, do not send it.
    print(f"tokens: {spent.input + spent.output} paid, {saved.input + saved.output} saved")
