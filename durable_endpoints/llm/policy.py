"""How a transport treats the requests of runs, as its user sets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from durable_endpoints.engine.steps import AMBIGUITY_POLICIES
from durable_endpoints.llm.rules import Rule
from durable_endpoints.quotas import RateLimit
from durable_endpoints.retry import Retry

INTERRUPT_POLICIES: Final = ("auto", "restart", "finalize", "fail", "hold")


@dataclass(frozen=True, slots=True)
class Policy:
    """See `DurableTransport`.

    Raises: ValueError for policies that there are not.
    """

    rule: Rule
    on_interrupt: str
    on_ambiguous: str
    retry: Retry | None
    rate_limit: RateLimit | None

    def __post_init__(self) -> None:
        for name, known in (
            ("on_interrupt", INTERRUPT_POLICIES),
            ("on_ambiguous", AMBIGUITY_POLICIES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")
