"""Which requests of a run are steps, which are effects: a rule that can be seen and set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Final, Literal, TypeAlias

import httpx

Treatment: TypeAlias = Literal["step", "effect", "plain"]
Rule: TypeAlias = Callable[[httpx.Request], "Treatment | None"]

# Asking a model twice costs money and changes nothing: a step. Patterns, `*` stands for any text.
LLM_HOSTS: Final = (
    "api.openai.com", "*.openai.azure.com", "*.services.ai.azure.com",
    "api.anthropic.com", "generativelanguage.googleapis.com", "*aiplatform.googleapis.com",
    "bedrock-runtime.*.amazonaws.com", "api.mistral.ai", "api.groq.com", "openrouter.ai",
    "api.deepseek.com", "api.x.ai", "api.together.xyz", "api.fireworks.ai", "api.cohere.com",
    "api.perplexity.ai", "api.cerebras.ai", "router.huggingface.co",
)  # fmt: skip
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class DefaultRule:
    """Safe methods are steps, requests to models are steps, all others are effects.

    A model is told by its host (`LLM_HOSTS` and `hosts`, each `name`, `name:port` or a pattern
    with `*`), or by the request: a POST to `…/chat/completions`, or one with the header
    `anthropic-version`, is a model's whoever the host is.
    """

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self.hosts = (*LLM_HOSTS, *(host.lower() for host in hosts))

    def __call__(self, request: httpx.Request) -> Treatment:
        """Return how a request is treated."""
        if request.method in _SAFE or self.is_model(request):
            return "step"
        return "effect"

    def is_model(self, request: httpx.Request) -> bool:
        """Say whether a request asks a model."""
        url = request.url
        names = (url.host.lower(), url.netloc.decode("ascii", "replace").lower())
        if any(fnmatch(name, host) for host in self.hosts for name in names):
            return True
        return url.path.endswith("/chat/completions") or "anthropic-version" in request.headers
