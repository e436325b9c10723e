"""Tool calls of an MCP server as they are journalled, and what a tool finds around it in a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import anyio
import orjson
from mcp.server import ServerRequestContext
from mcp.server.connection import Connection
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, CallToolRequestParams
from pydantic import BaseModel

from durable_endpoints.asgi.host import Host
from durable_endpoints.engine.functions import begin_call
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Overloaded
from durable_endpoints.limits import IDEMPOTENCY_KEY_CHARS_MAX

_PLACE: Final = "tools/call"


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call: everything that its run goes by. `task`: the client knows tasks."""

    params: dict[str, Any]
    task: bool
    version: str
    client: dict[str, Any] | None = None
    capabilities: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams, *, task: bool
    ) -> Call:
        """Return a call as it came."""
        client, capabilities = ctx.session.client_params, ctx.session.client_capabilities
        wire = dumped(params)
        # The client's own, above, and hints for the transport.
        wire.pop("_meta", None)
        return cls(
            wire, task, ctx.protocol_version,
            None if client is None else dumped(client.client_info),
            dumped(capabilities) if capabilities is not None else {},
        )  # fmt: skip


def dumped(value: Any) -> dict[str, Any]:
    """Return a model, or a dictionary, as it is on the wire."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dict(value or {})


async def begin(
    host: Host, function: Callable[..., Any], call: Call, *, name: str,
    principal: str | None, key: str | None,
) -> LiveRun:  # fmt: skip
    """Begin a call's run, or return the one that its key stands for (I7).

    Raises: MCPError if the key stands for another call, or there is no room.
    """
    await host.ensure_open()
    engine = host.engine
    if engine.away is not None:
        raise MCPError(INTERNAL_ERROR, f"{engine.away}; try again shortly")
    print_: str | None = None
    if key is not None:
        if len(key) > IDEMPOTENCY_KEY_CHARS_MAX or not key.isprintable():
            most = f"1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"
            raise MCPError(INVALID_PARAMS, f"an idempotency key has {most}")
        # Each round of a call that asks its client is a call of its own.
        round_ = [call.params.get("requestState"), call.params.get("inputResponses")]
        key = f"{_PLACE} {key}" + (f" {_digest(round_)}" if any(round_) else "")
        print_ = _digest([call.params.get("name"), call.params.get("arguments")])
        known = await engine.keys.reserve(principal, name, key)
        if known is not None:
            run = await engine.observe(known, principal)
            if run.record.fingerprint != print_:
                raise MCPError(INVALID_PARAMS, "this idempotency key was used for another call")
            return run
    begun: LiveRun | None = None
    try:
        begun = begin_call(
            engine, function, (asdict(call),), {}, principal=principal, name=name, key=key,
            fingerprint=print_,
        )  # fmt: skip
    except Overloaded as error:
        raise MCPError(INTERNAL_ERROR, str(error)) from error
    else:
        return begun
    finally:
        if key is not None:
            host.spawn(engine.keys.settle_by(principal, name, key, begun))


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class _Nobody:
    """The client of a tool in a run: it hears nothing, and is asked nothing."""

    def __init__(self, request_id: str) -> None:
        self.transport = TransportContext(kind="durable", can_send_request=False)
        self.can_send_request = False
        self.request_id = request_id
        self.message_metadata = None
        self.cancel_requested = anyio.Event()

    async def send_raw_request(self, method: str, *_: Any) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, *_: Any) -> None:
        """Tasks have no notifications of their own."""

    async def progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Tasks have no progress of their own."""


def detached(call: Call, run_id: str, state: Any) -> ServerRequestContext[Any, Any]:
    """Return what a tool finds around it in a run: who called, the lifespan, no request."""
    connection = Connection.from_envelope(call.version, call.client, call.capabilities)
    session = ServerSession(_Nobody(run_id), connection)
    return ServerRequestContext(
        session=session, lifespan_context=state, protocol_version=call.version, method=_PLACE,
        params=call.params, request_id=run_id,
    )  # fmt: skip
