"""How the examples talk to a model: any OpenAI-compatible server, by httpx, without an SDK.

OPENAI_BASE_URL, OPENAI_API_KEY and MODEL say which. Without OPENAI_BASE_URL the words come from
`scripted_model.py` in this very process, so that every example runs on its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import scripted_model

Message = dict[str, str]

TIMEOUT = httpx.Timeout(10, read=120)  # a model may think for long before its first word


async def ask(messages: Sequence[Message], *, words: int = 40) -> str:
    """Return a whole answer. Raises httpx.HTTPError if the server refuses or is away."""
    if "OPENAI_BASE_URL" not in os.environ:
        return scripted_model.reply(list(messages), words)
    async with _client() as client:
        response = await client.post("/chat/completions", json=_body(messages, words))
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])


async def stream(
    messages: Sequence[Message], recorded: Sequence[str] = (), *, words: int = 200
) -> AsyncIterator[str]:
    """Yield an answer token by token, going on after the tokens in `recorded`.

    What was recorded is sent along as the beginning of the assistant's answer, which the model
    then finishes (llama.cpp, vLLM, OpenRouter, Anthropic and others do; OpenAI's own models
    answer anew instead: there choose on_interrupt="restart").
    """
    asked = list(messages)
    if recorded:
        asked.append({"role": "assistant", "content": "".join(recorded)})
    if "OPENAI_BASE_URL" not in os.environ:
        async for token in scripted_model.tokens(asked, words=words):
            yield token
        return
    body = _body(asked, max(1, words - len(recorded))) | {"stream": True}
    async with _client() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            if choices and (token := choices[0]["delta"].get("content")):
                yield token


def _client() -> httpx.AsyncClient:
    key = os.environ.get("OPENAI_API_KEY", "none")
    return httpx.AsyncClient(
        base_url=os.environ["OPENAI_BASE_URL"],
        headers={"Authorization": f"Bearer {key}"},
        timeout=TIMEOUT,
    )


def _body(messages: Sequence[Message], words: int) -> dict[str, Any]:
    model = os.environ.get("MODEL", "default")
    return {"model": model, "messages": list(messages), "max_tokens": words}
