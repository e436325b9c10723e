"""Asks a model for an answer, by OpenAI's wire format."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from durable_endpoints.clock import Clock, SystemClock

Message = dict[str, str]

TOKENS_MAX: Final = 480
# A model may load for long before its first token.
_TIMEOUT: Final = httpx.Timeout(10.0, read=120.0)
# Of the connection, in case that the model's process is very busy.
_RETRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Model:
    """Which model to ask. `pace_s` is the least time between two tokens, in seconds."""

    base_url: str
    key: str
    name: str
    local: bool
    pace_s: float
    temperature: float

    @classmethod
    def from_environment(cls) -> Model:
        """The model that OPENAI_BASE_URL, OPENAI_API_KEY and MODEL name."""
        local = os.environ.get("DURABLE_DEMO_LOCAL") == "1"
        return cls(
            base_url=os.environ["OPENAI_BASE_URL"].rstrip("/"),
            key=os.environ.get("OPENAI_API_KEY", "none"),
            name=os.environ.get("MODEL", "default"),
            local=local,
            # So small a model outruns its reader, who would have no time to press the button.
            pace_s=float(os.environ.get("DURABLE_DEMO_PACE_MS", "25" if local else "0")) / 1000,
            temperature=float(os.environ.get("TEMPERATURE", "0.7")),
        )


class ModelRefused(Exception):
    """The model's server said no; the message has its words."""


async def tokens(
    model: Model, messages: Sequence[Message], recorded: Sequence[str], clock: Clock | None = None
) -> AsyncIterator[str]:
    """Yield the answer to `messages` token by token, after the tokens in `recorded`.

    What is recorded is sent as the beginning of the assistant's own answer, and the model goes on
    from its last letter. llama.cpp, vLLM, Ollama, OpenRouter and Anthropic do so; OpenAI's own
    models begin a new sentence instead.

    Raises: ModelRefused, or httpx.TransportError if the server goes away.
    """
    if len(recorded) >= TOKENS_MAX:
        return
    clock = clock or SystemClock()
    async with httpx.AsyncClient(
        timeout=_TIMEOUT,
        headers={"Authorization": f"Bearer {model.key}"},
        # A transport of its own also keeps a proxy of the environment away from this machine.
        transport=httpx.AsyncHTTPTransport(retries=_RETRIES) if model.local else None,
    ) as client:
        url, body = f"{model.base_url}/chat/completions", _body(model, messages, recorded)
        async with client.stream("POST", url, json=body) as answer:
            if not answer.is_success:
                said = (await answer.aread()).decode(errors="replace")[:500]
                raise ModelRefused(f"{url} answered {answer.status_code}: {said}")
            due = clock.monotonic_s()
            async for line in answer.aiter_lines():
                if (token := _token(line)) is None:
                    continue
                if (early := due - clock.monotonic_s()) > 0:
                    await asyncio.sleep(early)
                due = max(due, clock.monotonic_s() - model.pace_s) + model.pace_s
                yield token


def _body(model: Model, messages: Sequence[Message], recorded: Sequence[str]) -> dict[str, Any]:
    asked = list(messages)
    if recorded:
        asked.append({"role": "assistant", "content": "".join(recorded)})
    body: dict[str, Any] = {
        "model": model.name,
        "messages": asked,
        "stream": True,
        "temperature": model.temperature,
        "max_tokens": TOKENS_MAX - len(recorded),
    }
    if model.local:  # a setting of llama.cpp; without it so small a model repeats itself
        body["repeat_penalty"] = 1.1
    return body


def _token(line: str) -> str | None:
    if not line.startswith("data: {"):
        return None
    choices = json.loads(line.removeprefix("data: ")).get("choices") or []
    content = choices[0].get("delta", {}).get("content") if choices else None
    return content or None
