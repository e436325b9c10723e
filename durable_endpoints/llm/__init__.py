"""LLM calls with the libraries people already use, made durable by the HTTP client below them."""

from durable_endpoints.llm.client import durable_client, is_durable
from durable_endpoints.llm.rules import LLM_HOSTS, DefaultRule, Rule, Treatment
from durable_endpoints.llm.transport import DurableTransport
from durable_endpoints.llm.usage import Price, RunUsage, Tokens, Usage, current_usage, usage_of

__all__ = [
    "LLM_HOSTS",
    "DefaultRule",
    "DurableTransport",
    "Price",
    "Rule",
    "RunUsage",
    "Tokens",
    "Treatment",
    "Usage",
    "current_usage",
    "durable_client",
    "is_durable",
    "usage_of",
]
