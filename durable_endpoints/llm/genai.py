"""What spans of model calls say, by OpenTelemetry's semantic conventions for generative AI.

Names, numbers and addresses; never what was asked or answered.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final

import orjson

from durable_endpoints.engine.observing import ATTEMPT
from durable_endpoints.llm.library import content_of

if TYPE_CHECKING:
    import httpx

    from durable_endpoints.llm.usage import Meter

# Beyond it, a body is not read for the model's name.
_READ_BYTES_MAX: Final = 1024 * 1024
_PROVIDERS: Final = (
    ("api.openai.com", "openai"),
    ("*.openai.azure.com", "azure.ai.openai"),
    ("*.services.ai.azure.com", "azure.ai.inference"),
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("*aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("bedrock-runtime.*.amazonaws.com", "aws.bedrock"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.groq.com", "groq"),
    ("api.deepseek.com", "deepseek"),
    ("api.x.ai", "x_ai"),
    ("api.cohere.com", "cohere"),
    ("api.perplexity.ai", "perplexity"),
)
_OPERATIONS: Final = (
    ("*/chat/completions", "chat"),
    ("*/messages", "chat"),
    ("*/responses", "chat"),
    ("*/converse", "chat"),
    ("*/converse-stream", "chat"),
    ("*/v2/chat", "chat"),
    ("*:generatecontent", "generate_content"),
    ("*:streamgeneratecontent", "generate_content"),
    ("*/embeddings", "embeddings"),
    ("*:embedcontent", "embeddings"),
    ("*/completions", "text_completion"),
)
# Where the address has the model: Gemini's and Vertex', Azure's, Bedrock's.
_IN_PATH: Final = re.compile(r"/(?:models|deployments|model)/([^/:]+)")


def about(request: httpx.Request) -> dict[str, str] | None:
    """Return what the span of a model call says from the beginning; None of other requests."""
    url = request.url
    path = url.path.lower()
    operation = next((name for pattern, name in _OPERATIONS if fnmatch(path, pattern)), None)
    if operation is None or request.method != "POST":
        return None
    host = url.host.lower()
    provider = next((name for pattern, name in _PROVIDERS if fnmatch(host, pattern)), None)
    if provider is None:  # the conventions' word for who speaks that provider's protocol
        provider = "anthropic" if "anthropic-version" in request.headers else "openai"
    found = {
        "gen_ai.operation.name": operation, "gen_ai.provider.name": provider,
        "server.address": host,
    }  # fmt: skip
    model = _model(request)
    return {**found, "gen_ai.request.model": model} if model else found


def _model(request: httpx.Request) -> str:
    content = content_of(request) or b""
    if len(content) <= _READ_BYTES_MAX:
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            return str(body["model"])
    named = _IN_PATH.search(request.url.path)
    return named[1] if named else ""


def note_status(status: int) -> None:
    """Note what an HTTP answer said of itself, on the span around the caller."""
    seen = ATTEMPT.get()
    if seen is not None:
        seen.note({"http.response.status_code": status})


def note_usage(meter: Meter) -> None:
    """Note what an answer used, on the span around the caller."""
    seen = ATTEMPT.get()
    found = meter.result() if seen is not None else None
    if seen is None or found is None:
        return
    model, tokens = found
    figures: dict[str, str | int] = {
        "gen_ai.usage.input_tokens": tokens.input, "gen_ai.usage.output_tokens": tokens.output,
    }  # fmt: skip
    if tokens.cached:
        figures["gen_ai.usage.cache_read.input_tokens"] = tokens.cached
    if model:
        figures["gen_ai.response.model"] = model
    seen.note(figures)
