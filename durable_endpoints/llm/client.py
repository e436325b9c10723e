"""`durable_client()`: an HTTP client to hand to the model providers' libraries."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final
from weakref import WeakSet

from durable_endpoints.llm.library import LIBRARIES
from durable_endpoints.llm.rules import Rule
from durable_endpoints.llm.transport import DEFAULT_RETRY, DurableTransport
from durable_endpoints.quotas import RateLimit
from durable_endpoints.retry import Retry

# As the providers' own libraries have it: streams keep their connections for long.
_CONNECTIONS_MAX: Final = 1000
_KEPT_ALIVE_MAX: Final = 100
_DURABLE: Final[WeakSet[Any]] = WeakSet()


def durable_client(
    *,
    llm_hosts: Iterable[str] = (),
    rule: Rule | None = None,
    on_interrupt: str = "auto",
    on_ambiguous: str = "retry",
    retry: Retry | None = DEFAULT_RETRY,
    rate_limit: RateLimit | None = None,
    library: ModuleType | None = None,
    **options: Any,
) -> Any:
    """Return an `AsyncClient` whose requests are durable inside a run.

        client = AsyncOpenAI(http_client=durable_client())
        claude = AsyncAnthropic(http_client=durable_client())

    `library` is `httpx2` or `httpx`, the first of them that is there if not given (openai before
    3 and anthropic before 2 take clients of httpx only). `options` are those of its `AsyncClient`;
    the host of a `base_url` counts as a model's. For the rest see `DurableTransport`.

    Raises: ValueError for policies that there are not; what `AsyncClient` raises.
    """
    library = library or LIBRARIES[0]
    limits = {
        "max_connections": _CONNECTIONS_MAX,
        "max_keepalive_connections": _KEPT_ALIVE_MAX,
    }
    client = library.AsyncClient(
        **{"follow_redirects": True, "limits": library.Limits(**limits), **options}
    )
    hosts = [*llm_hosts, *([client.base_url.netloc.decode()] if client.base_url.host else [])]

    def durable(inner: Any) -> DurableTransport:
        return DurableTransport(
            inner, llm_hosts=hosts, rule=rule, on_interrupt=on_interrupt,
            on_ambiguous=on_ambiguous, retry=retry, rate_limit=rate_limit,
        )  # fmt: skip

    # The client has made its transports out of all its options and the environment's proxies;
    # no public call does so.
    client._transport = durable(client._transport)  # noqa: SLF001
    client._mounts = {  # noqa: SLF001
        pattern: inner and durable(inner)
        for pattern, inner in client._mounts.items()  # noqa: SLF001
    }
    _DURABLE.add(client)
    return client


def is_durable(client: object) -> bool:
    """Say whether an HTTP client came from `durable_client`."""
    try:
        return client in _DURABLE
    except TypeError:  # nothing that could be one
        return False
