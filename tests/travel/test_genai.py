"""Spans of model calls say what the conventions for generative AI ask for, and no more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable_endpoints import Engine, durable
from durable_endpoints.engine.functions import start
from durable_endpoints.llm import durable_client, genai
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.telemetry import observer

SECRET = "what nobody is to read in a trace"
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}


def answer(request: httpx.Request) -> httpx.Response:
    asked = json.loads(request.content or b"{}")
    model = f"{asked.get('model')}-2026"
    if not asked.get("stream"):
        choices = [{"message": {"role": "assistant", "content": SECRET}}]
        return httpx.Response(200, json={"model": model, "choices": choices, "usage": USAGE})
    chunks: list[dict[str, Any]] = [
        {"model": model, "choices": [{"delta": {"content": SECRET}}]} for _ in range(3)
    ]
    chunks.append({"model": model, "choices": [], "usage": USAGE})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


def client() -> Any:
    return durable_client(library=httpx, transport=httpx.MockTransport(answer))


@durable
async def calls() -> None:
    async with client() as models:
        for more in ({}, {"stream": True}):
            body = {"model": "tiny", "messages": [{"content": SECRET}], **more}
            await models.post("https://api.openai.com/v1/chat/completions", json=body)
        await models.get("https://api.openai.com/v1/models")


def spans(function: Any) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def main() -> None:
        engine = Engine(MemoryStore())
        engine.observer = observer(provider)
        await engine.open()
        await (await start(engine, function)).result()
        await engine.close()

    asyncio.run(main())
    provider.shutdown()
    return {
        f"{span.name}{n}" if span.name.startswith("step POST") else span.name: span
        for n, span in enumerate(exporter.get_finished_spans())
    }


def test_a_model_call_by_the_conventions() -> None:
    found = spans(calls)
    asked = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "tiny", "server.address": "api.openai.com",
    }  # fmt: skip
    used = {
        "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.response.model": "tiny-2026",
    }  # fmt: skip
    status = {"http.response.status_code": 200}
    told = [
        {k: v for k, v in (span.attributes or {}).items() if not k.startswith("durable.")}
        for name, span in found.items()
        if name.startswith("step POST")
    ]
    whole, head, body = told
    assert whole == {**asked, **used, **status}
    assert head == {**asked, **status}
    assert body == {**asked, **used}
    plain = found["step GET api.openai.com/v1/models"].attributes or {}
    assert not [key for key in plain if key.startswith("gen_ai.")]
    assert all(SECRET not in span.to_json() for span in found.values())


GOOGLE = "https://generativelanguage.googleapis.com/v1beta"


@pytest.mark.parametrize(
    ("url", "headers", "body", "expected"),
    [
        ("https://api.anthropic.com/v1/messages", {}, {"model": "m"}, ("chat", "anthropic", "m")),
        ("http://gw/v1/messages", {"anthropic-version": "1"}, {"model": "m"},
         ("chat", "anthropic", "m")),
        ("http://localhost:1/v1/chat/completions", {}, {"model": "m"}, ("chat", "openai", "m")),
        ("https://api.openai.com/v1/responses", {}, {"model": "m"}, ("chat", "openai", "m")),
        ("https://api.openai.com/v1/embeddings", {}, {"model": "m"},
         ("embeddings", "openai", "m")),
        (f"{GOOGLE}/models/gem:streamGenerateContent?alt=sse", {}, {},
         ("generate_content", "gcp.gemini", "gem")),
        ("https://x.openai.azure.com/openai/deployments/d/chat/completions", {}, {},
         ("chat", "azure.ai.openai", "d")),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com/model/claude/converse", {}, {},
         ("chat", "aws.bedrock", "claude")),
        ("https://api.openai.com/v1/files", {}, {"model": "m"}, None),
    ],
)  # fmt: skip
def test_what_a_request_says(
    url: str, headers: dict[str, str], body: Any, expected: tuple[str, str, str] | None
) -> None:
    found = genai.about(httpx.Request("POST", url, headers=headers, json=body))
    names = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
    assert (None if found is None else tuple(found[name] for name in names)) == expected
