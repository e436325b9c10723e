"""MCP: a client whose calls are steps and effects of the run around it.

    async with DurableClient(lambda: Client("https://example.com/mcp")) as client:
        tools = await client.list_tools()
        result = await client.call_tool("search", {"q": "durable"})

The server is connected to when something is asked that is not recorded; a replay needs none.
Needs the extra `mcp`. Outside a run the calls are the plain ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    CompleteResult,
    ErrorData,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    ReadResourceResult,
    Tool,
)
from pydantic import BaseModel

from durable_endpoints import Retry, effect, idempotency_key, step
from durable_endpoints.engine.calls import scope_or_none
from durable_endpoints.integrations.mcp_tasks import KEY_META, LOST, Tasks, is_lost, task_result
from durable_endpoints.limits import NAME_CHARS_MAX

__all__ = ["KEY_META", "DurableClient", "Tasks", "task_result"]

ResultT = TypeVar("ResultT", bound=BaseModel)
Treatment: TypeAlias = Literal["step", "effect"]
# A server that is restarted is away for some seconds: six attempts take about fifteen.
DEFAULT_RETRY: Final = Retry(attempts=6)


class _Lost(ConnectionError):
    """No answer came: what the client's library says of it, in pieces that JSON can hold."""

    def __init__(self, error: MCPError) -> None:
        super().__init__(error.message)
        self.code, self.message, self.data = error.code, error.message, error.data


class DurableClient:
    """A client of one MCP server, for the time of a run.

    `connect` returns a new `mcp.Client`, or another context manager of something with its methods.
    Listing and reading are steps. A tool is a step if it says that it is read-only or idempotent
    (in the last `list_tools`), an effect if not: it then finds `KEY_META` in its `_meta`. `rule`
    decides otherwise: a function of the tool's name and of what was listed of it (or None) that
    returns "step", "effect", or None for that rule. `name` is the server's, in the journal.

    `retry` is for calls whose connection failed, on a new one: the server was not there, or was
    restarted. What a server answers is its answer, errors too (and `is_error`); so is a timeout.
    Servers that run a call as a task are waited for if `connect` says `extensions=[Tasks()]`.
    Callbacks (`progress_callback`, …) hear of what happens, and nothing at a replay.

    Raises, at the calls: MCPError, the same at every replay; what the connection raises.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Any]], *, name: str = "mcp",
        rule: Callable[[str, Tool | None], Treatment | None] | None = None,
        retry: Retry | None = DEFAULT_RETRY,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._name = name
        self._rule = rule
        self._retry = retry
        self._tools: dict[str, Tool] = {}
        self._connection: _Connection | None = None
        self._lost: list[_Connection] = []

    async def __aenter__(self) -> Self:
        """Begin; connects to nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close the connection, if there is one."""
        self._leave(self._connection)
        while self._lost:
            await self._lost.pop().close()

    async def list_tools(self, **options: Any) -> ListToolsResult:
        """Return the server's tools."""
        found = await self._read("list_tools", ListToolsResult, **options)
        self._tools |= {tool.name: tool for tool in found.tools}
        return found

    async def list_resources(self, **options: Any) -> ListResourcesResult:
        """Return the server's resources."""
        return await self._read("list_resources", ListResourcesResult, **options)

    async def list_resource_templates(self, **options: Any) -> ListResourceTemplatesResult:
        """Return the server's resource templates."""
        return await self._read("list_resource_templates", ListResourceTemplatesResult, **options)

    async def read_resource(self, uri: str, **options: Any) -> ReadResourceResult:
        """Return a resource."""
        return await self._read("read_resource", ReadResourceResult, uri, **options)

    async def list_prompts(self, **options: Any) -> ListPromptsResult:
        """Return the server's prompts."""
        return await self._read("list_prompts", ListPromptsResult, **options)

    async def get_prompt(
        self, name: str, arguments: dict[str, str] | None = None, **options: Any
    ) -> GetPromptResult:
        """Return a prompt."""
        return await self._read("get_prompt", GetPromptResult, name, arguments, **options)

    async def complete(self, ref: Any, argument: dict[str, str], **options: Any) -> CompleteResult:
        """Return what completes an argument of a prompt or of a resource template."""
        label = f"{self._name}: complete"[:NAME_CHARS_MAX]

        async def ask(client: Any, *_: Any) -> Any:
            return await client.complete(ref, argument, **options)

        return await self._made(step, label, ask, CompleteResult, _json(ref), argument)

    async def call_tool(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> CallToolResult:
        """Call a tool; `options` are those of the client's own `call_tool`."""
        listed = self._tools.get(name)
        treatment = (self._rule and self._rule(name, listed)) or treatment_of(listed)
        label = f"{self._name}: {name}"[:NAME_CHARS_MAX]
        keyed = treatment == "effect" and scope_or_none() is not None

        async def call(client: Any, *_: Any) -> Any:
            given = dict(options)
            if keyed:
                given["meta"] = {**(given.get("meta") or {}), KEY_META: idempotency_key()}
            return await client.call_tool(name, arguments, **given)

        kind = step if treatment == "step" else effect
        return await self._made(kind, label, call, CallToolResult, name, arguments)

    async def _read(
        self, method: str, result: type[ResultT], *args: Any, **options: Any
    ) -> ResultT:
        label = f"{self._name}: {method}"[:NAME_CHARS_MAX]

        async def ask(client: Any, *args: Any) -> Any:
            return await getattr(client, method)(*args, **options)

        return await self._made(step, label, ask, result, *args)

    async def _made(
        self, kind: Any, label: str, ask: Callable[..., Any], result: type[ResultT], *args: Any
    ) -> ResultT:
        async def call(*args: Any) -> Any:
            connection = self._connected()
            try:
                return await ask(await connection.client(), *args)
            except Exception as error:
                if is_lost(error):
                    self._leave(connection)
                raise

        return await recorded(kind(name=label, retry=self._retry), call, result, *args)

    def _connected(self) -> _Connection:
        if self._connection is None or self._connection.over:
            self._leave(self._connection)
            self._connection = _Connection(self._connect)
        return self._connection

    def _leave(self, connection: _Connection | None) -> None:
        """Use a connection no more; it is closed when all calls on it are over."""
        if connection is not None and connection is self._connection:
            self._connection = None
            self._lost.append(connection)


async def recorded(
    kind: Callable[..., Any], ask: Callable[..., Any], result: type[ResultT], *args: Any
) -> ResultT:
    """Ask a server as a step or an effect; its answer is recorded, an error of its protocol too.

    Raises: MCPError, as it came; what `ask` raises besides.
    """

    async def make(*args: Any) -> dict[str, Any]:
        try:
            return {"result": _json(await ask(*args))}
        except MCPError as error:
            if error.code in LOST:  # no answer of the server's
                raise _Lost(error) from error
            return {"error": _json(error.error)}

    try:
        made = await kind(make)(*args)
    except _Lost as lost:
        raise MCPError(lost.code, lost.message, lost.data) from lost
    if "error" in made:
        data = ErrorData.model_validate(made["error"])
        raise MCPError(data.code, data.message, data.data)
    return result.model_validate(made["result"])


def _json(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def _only_one(error: Exception) -> Exception:
    """Return what the library's task groups have wrapped, if that is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def treatment_of(tool: Tool | None) -> Treatment:
    """Return how a tool is called, by what it says of itself."""
    hints = tool.annotations if tool is not None else None
    safe = hints is not None and (hints.read_only_hint or hints.idempotent_hint)
    return "step" if safe else "effect"


class _Connection:
    """A connection opened and closed by one task: its library asks for that."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        loop = asyncio.get_running_loop()
        self._connect = connect
        self._opened: asyncio.Future[Any] = loop.create_future()
        self._leave = asyncio.Event()
        self._task = loop.create_task(self._hold())

    @property
    def over(self) -> bool:
        """Whether it is of no use any more."""
        return self._task.done()

    async def client(self) -> Any:
        """Return the client, once it is connected."""
        return await asyncio.shield(self._opened)

    async def close(self) -> None:
        """Close, and wait for it."""
        self._leave.set()
        if not self._opened.done():
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._opened.done():
            self._task.exception()  # whoever asked has been told

    async def _hold(self) -> None:
        try:
            async with self._connect() as client:
                self._opened.set_result(client)
                await self._leave.wait()
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(_only_one(error))
