"""MCP: a server whose tool calls are runs, that clients take up again as tasks.

    server = MCPServer("shop")
    durable_tools(server)
    app = DurableMiddleware(server.streamable_http_app(), store="sqlite:///durable.db")

Needs the extra `mcp`. Over other transports, and without the middleware, calls are plain ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from mcp.server import MCPServer, Server, ServerRequestContext
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    ErrorData,
    InputResponse,
)
from mcp_types.methods import is_input_required
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter
from starlette.requests import Request

from durable_endpoints import sleep, step, wait_for_signal
from durable_endpoints.asgi.exchange import Exchange
from durable_endpoints.asgi.host import Host
from durable_endpoints.engine.endpoints import ADMISSION, ENDPOINTS, EndpointSpec
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE
from durable_endpoints.errors import AlreadyAnswered, RunEnded, RunNotFound
from durable_endpoints.integrations import mcp_tasks as tasks
from durable_endpoints.integrations.mcp_calls import Call, begin, detached, dumped
from durable_endpoints.integrations.mcp_standing import (
    ASKED,
    ENDING,
    INPUT,
    created,
    detailed,
    outstanding,
    result_of,
)

_HANDLE_AFTER_S: Final = 0.1
# A tool that wants to be called again, and asks nothing, is called after so many seconds.
_AGAIN_S: Final = 1.0
Context = ServerRequestContext[Any, Any]
_ANSWER: Final = TypeAdapter[InputResponse](InputResponse)


def durable_tools(
    server: MCPServer | Server[Any], *, tools: Iterable[str] | None = None,
    required: Iterable[str] = (), patience: float = _HANDLE_AFTER_S, poll_interval: float = 1.0,
    version: str = "1",
) -> None:  # fmt: skip
    """Make a server's tool calls durable; for a low-level server, when it has its handlers.

    - A call of a client that knows the Tasks extension is a run, whose id is the task's. What is
      done within `patience` seconds is answered at once, all else with the task. The task is
      answered for by the journal, whatever becomes of the process; `tasks/cancel` cancels the run,
      `tasks/update` answers what the tool asks (an `InputRequiredResult`) in its midst.
    - A call with an idempotency key (`_meta["durable-endpoints/idempotency-key"]`, which our own
      `DurableClient` sends, or the header `Idempotency-Key`) is a run, too: the same call again
      has the same result. It goes on when its client is gone.
    - All other calls are what they are without. `required` tools refuse them.

    In a run a tool has steps, effects and waits as an endpoint has; without any it runs again
    after a crash. It has no request around it: no headers, and nobody to report progress to.
    `tools` are the names of those that this is for (None: all), `poll_interval` is what clients
    are told, in seconds. Servers of one app need names of their own; raise `version` when you
    change the order of the tools' steps.
    """
    low = server if isinstance(server, Server) else server._lowlevel_server  # noqa: SLF001
    policy = _Policy(
        None if tools is None else frozenset(tools), frozenset(required), patience,
        round(poll_interval * 1000),
    )  # fmt: skip
    _Tools(low, policy, version).install()


@dataclass(frozen=True, slots=True)
class _Policy:
    tools: frozenset[str] | None
    required: frozenset[str]
    patience_s: float
    poll_ms: int


class _Tools:
    """The tool calls of one server."""

    def __init__(self, server: Server[Any], policy: _Policy, version: str) -> None:
        entry = server.get_request_handler("tools/call")
        if entry is None:
            raise ValueError("this server has no tools: give it `on_call_tool` first")
        self._server = server
        self._policy = policy
        self._call_tool = entry.handler
        self._prefix = f"MCP {server.name}: "
        self._spec = EndpointSpec(f"mcp:{server.name}", version)
        self._begun = asyncio.Event()
        self._state: Any = None

    def install(self) -> None:
        """Put durable calls in the place of plain ones."""
        server = self._server

        async def run_tool(call: dict[str, Any]) -> dict[str, Any]:
            return await self._run(Call(**call))

        run_tool.durable_endpoint = self._spec  # type: ignore[attr-defined]
        self._function = run_tool
        ENDPOINTS[self._spec.name] = (self._spec, run_tool)
        server.extensions[tasks.TASKS] = {}
        server.add_request_handler("tools/call", CallToolRequestParams, self._call)
        server.add_request_handler(tasks.GET, tasks.TaskParams, self._get)
        server.add_request_handler(tasks.UPDATE, tasks.UpdateParams, self._update)
        server.add_request_handler(tasks.CANCEL, tasks.TaskParams, self._cancel)
        own = server.lifespan

        @asynccontextmanager
        async def lifespan(server: Server[Any]) -> AsyncIterator[Any]:
            async with own(server) as self._state:
                self._begun.set()
                try:
                    yield self._state
                finally:
                    self._begun = asyncio.Event()

        server.lifespan = lifespan

    # --- in the run

    async def _run(self, call: Call) -> dict[str, Any]:
        """Be one run: call the tool, as often as it asks for something, and return what came."""
        await self._begun.wait()
        scope = SCOPE.get()
        assert scope is not None, "a run's own code has a scope"
        params = CallToolRequestParams.model_validate(call.params, by_name=False)
        context = detached(call, scope.run.id, self._state)
        outcome = await self._outcome(context, params)
        for number in count():
            if not (call.task and is_input_required(outcome.get("result"))):
                break
            params = await self._answered(params, outcome["result"], number)
            outcome = await self._outcome(context, params)
        failed = "error" in outcome or bool(outcome["result"].get("isError"))
        if failed and scope.run.undo:  # what it has done is undone when the run fails

            async def ending() -> dict[str, Any]:
                return outcome

            await step.run(ENDING, ending)
            raise ToolFailed("the tool failed, and what it has done is undone")
        return outcome

    async def _outcome(self, context: Context, params: CallToolRequestParams) -> dict[str, Any]:
        try:
            made = await self._call_tool(context, params)
        except MCPError as error:  # an answer of the protocol
            made = error.error
        return {"error" if isinstance(made, ErrorData) else "result": dumped(made)}

    async def _answered(
        self, params: CallToolRequestParams, found: dict[str, Any], number: int
    ) -> CallToolRequestParams:
        """Ask the client what the tool asks; return the call with the answers."""
        questions: dict[str, Any] = found.get("inputRequests") or {}

        async def ask() -> dict[str, Any]:
            return {f"{number}.{key}": question for key, question in questions.items()}

        await step.run(ASKED, ask)
        answers = {}
        for place, key in enumerate(questions):
            answers[key] = await wait_for_signal(f"{INPUT}{number}.{place}", once=True)
        if not questions:
            await sleep(_AGAIN_S)
        given = {"inputResponses": answers, "requestState": found.get("requestState")}
        wire = {**dumped(params), **given}
        return CallToolRequestParams.model_validate(wire, by_name=False)

    # --- requests

    async def _call(self, ctx: Context, params: CallToolRequestParams) -> Any:
        policy, host = self._policy, _host()
        declared = _declares(ctx)
        if params.name in policy.required and not declared:
            require_client_extension(ctx, tasks.TASKS)
        key = _key_of(ctx)
        listed = policy.tools is None or params.name in policy.tools | policy.required
        if host is None or not listed or not (declared or key):
            return await self._call_tool(ctx, params)
        call = Call.of(ctx, params, task=declared)
        run = await begin(
            host, self._function, call, name=self._prefix + params.name,
            principal=await _principal(host, ctx), key=key,
        )  # fmt: skip
        try:
            await run.durable(0)  # before anybody is told of it
            async with asyncio.timeout(policy.patience_s if declared else None):
                await _ended(run)
        except TimeoutError:
            return created(run.record, policy.poll_ms)
        except asyncio.CancelledError:
            # The client left, and has no id by which it could come back.
            if key is None and not (host.engine.leaving or host.engine.draining):
                host.spawn(host.engine.cancel(run))
            raise
        return await result_of(host.engine, run)

    async def _get(self, ctx: Context, params: tasks.TaskParams) -> Any:
        host, run = await self._task(ctx, params)
        return await detailed(host.engine, run, self._policy.poll_ms)

    async def _cancel(self, ctx: Context, params: tasks.TaskParams) -> Any:
        host, run = await self._task(ctx, params)
        await host.engine.cancel(run)
        return {}

    async def _update(self, ctx: Context, params: tasks.UpdateParams) -> Any:
        host, run = await self._task(ctx, params)
        places = await outstanding(host.engine, run)
        for key, given in params.input_responses.items():
            if key not in places:
                continue  # not asked, or answered before
            # What the tool could not read would end its run.
            answer = dumped(_ANSWER.validate_python(given, by_name=False))
            try:
                await host.engine.signal(run, places[key].signal, answer, signal_id=key)
            except (AlreadyAnswered, RunEnded):
                continue  # somebody was faster
        return {}

    async def _task(self, ctx: Context, params: tasks.TaskParams) -> tuple[Host, LiveRun]:
        """Return the run of a task of the caller's.

        Raises: MCPError if there is none, or the caller may not ask.
        """
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
        require_client_extension(ctx, tasks.TASKS)
        request, host = ctx.request, _host()
        if isinstance(request, Request):
            named = decode_header_value(request.headers.get(MCP_NAME_HEADER))
            if named != params.task_id:
                raise MCPError(
                    HEADER_MISMATCH, f"the header {MCP_NAME_HEADER} is not the request's taskId"
                )
        if host is not None:
            await host.ensure_open()
            principal = await _principal(host, ctx)
            try:
                run = await host.engine.observe(params.task_id, principal)
            except RunNotFound:  # or another principal's, or deleted
                run = None
            if run is not None and run.record.name.startswith(self._prefix):
                return host, run
        raise MCPError(INVALID_PARAMS, f"there is no task {params.task_id!r}")


class ToolFailed(Exception):
    """A tool has given an error as its result, after work that can be undone."""


def _host() -> Host | None:
    """Return what the middleware around the request has; None if there is none, or a run is."""
    admission = ADMISSION.get()
    outside = SCOPE.get() is None
    return admission.host if outside and isinstance(admission, Exchange) else None


async def _principal(host: Host, ctx: Context) -> str | None:
    if isinstance(ctx.request, Request):
        return await host.principal_of(ctx.request.scope)
    return None


def _declares(ctx: Context) -> bool:
    """Say whether the client knows tasks, by this very request."""
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return False
    capabilities = ctx.session.client_capabilities
    return tasks.TASKS in ((capabilities and capabilities.extensions) or {})


def _key_of(ctx: Context) -> str | None:
    key = (ctx.meta or {}).get(tasks.KEY_META)
    if key is None and isinstance(ctx.request, Request):
        key = ctx.request.headers.get("idempotency-key")
    return str(key) if key else None


async def _ended(run: LiveRun) -> None:
    """Wait until a run is at its end.

    Raises: MCPError if it goes on in another process.
    """
    while not run.ended and run.record.status != "diverged":
        if run.gone is not None:
            raise MCPError(INTERNAL_ERROR, f"the call was interrupted: {run.gone}; try it again")
        await run.progress()
