"""A pydantic-ai agent with tools, whose answer streams from inside the durable run.

    pip install 'durable-endpoints[pydantic-ai]' openai
    durable run agent_pydantic_ai:app
    curl -N '127.0.0.1:8000/ask?durable_events=1' --json '{"question": "Is my parcel on its way?"}'

What to notice:
- One capability, `DurableEndpoints()`. Model requests stream as ever; tool calls are steps.
- `refund` acts on the world, so its metadata says that it is an effect: it begins when all before
  it is durable, and has a key that is the same for every attempt.

It talks to the model at OPENAI_BASE_URL (OPENAI_API_KEY, MODEL).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from durable_endpoints import DurableMiddleware, StreamInterrupted, durable, idempotency_key
from durable_endpoints.integrations.pydantic_ai import DurableEndpoints
from durable_endpoints.llm import durable_client

app = FastAPI(title="An agent of pydantic-ai")
app.add_middleware(DurableMiddleware, store="sqlite:///agent_pydantic_ai.db")
shop: FunctionToolset[None] = FunctionToolset(id="shop")
model = OpenAIChatModel(
    os.environ.get("MODEL", "gpt-5-mini"), provider=OpenAIProvider(http_client=durable_client())
)
agent = Agent(
    model, name="shop", toolsets=[shop], capabilities=[DurableEndpoints()],
    instructions="You help the customers of a small shop.",
)  # fmt: skip


class Question(BaseModel):
    question: str = Field(max_length=2000)


@shop.tool_plain
async def where_is(parcel: str) -> str:
    """Say where a parcel is."""
    return f"{parcel} left the warehouse this morning"


@shop.tool_plain(metadata={"durable_endpoints": {"effect": True}})
async def refund(order: str) -> str:
    """Refund an order."""
    return f"{order} is refunded, receipt {idempotency_key()[:8]}"


@app.post("/ask", response_class=EventSourceResponse)
@durable
async def ask(body: Question) -> AsyncIterator[dict[str, str]]:
    try:
        async with agent.run_stream(body.question) as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                yield {"text": text}
    except StreamInterrupted:
        yield {"error": "the server was restarted in the middle of this answer; ask again"}
