"""An agent of openai-agents that asks a person before it acts.

    pip install 'durable-endpoints[openai-agents]'
    durable run agent_approval:app
    curl -N 127.0.0.1:8000/ask --json '{"question": "Refund order 3, please."}'
    curl 127.0.0.1:8000/_durable/approvals                       # in another terminal: who waits
    curl 127.0.0.1:8000/_durable/runs/<id>/signals/<name> --json '{"approved": true}'

What to notice:
- While nobody has answered, the run is suspended: not in memory, and as safe as a file. Stop the
  server, start it a day later, answer: the agent goes on where it was.
- The default client of openai-agents is set once; `durable_agent` makes steps of the tools.

It talks to the model at OPENAI_BASE_URL (OPENAI_API_KEY, MODEL), by OpenAI's Responses.
"""

from __future__ import annotations

import os
from typing import Any

from agents import Agent, function_tool, set_default_openai_client
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from durable_endpoints import DurableMiddleware, durable, idempotency_key
from durable_endpoints.integrations.openai_agents import durable_agent, run_with_approvals
from durable_endpoints.llm import durable_client

app = FastAPI(title="An agent that asks first")
app.add_middleware(DurableMiddleware, store="sqlite:///agent_approval.db")
# `llm_hosts` because a Responses server may be anywhere; OpenAI's own is known.
hosts = [os.environ["OPENAI_BASE_URL"].split("/")[2]] if "OPENAI_BASE_URL" in os.environ else []
set_default_openai_client(
    AsyncOpenAI(http_client=durable_client(llm_hosts=hosts)), use_for_tracing=False
)


class Question(BaseModel):
    question: str = Field(max_length=2000)


@function_tool(needs_approval=True)
async def refund(order: int) -> str:
    """Refund an order."""
    return f"order {order} is refunded, receipt {idempotency_key()[:8]}"


agent = durable_agent(
    Agent(
        name="Refunds", instructions="You refund orders.", tools=[refund],
        model=os.environ.get("MODEL", "gpt-5-mini"),
    ),
    {"refund": {"effect": True}},
)  # fmt: skip


@app.post("/ask")
@durable
async def ask(body: Question) -> dict[str, Any]:
    result = await run_with_approvals(agent, body.question)
    return {"answer": result.final_output}
