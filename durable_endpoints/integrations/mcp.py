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
    ErrorData,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListToolsResult,
    ReadResourceResult,
    Tool,
)
from pydantic import BaseModel

from durable_endpoints import effect, idempotency_key, step
from durable_endpoints.engine.calls import scope_or_none
from durable_endpoints.limits import NAME_CHARS_MAX

ResultT = TypeVar("ResultT", bound=BaseModel)
Treatment: TypeAlias = Literal["step", "effect"]
# Where a tool finds the key that is the same for every attempt.
KEY_META: Final = "durable-endpoints/idempotency-key"


class DurableClient:
    """A client of one MCP server, for the time of a run.

    `connect` returns a new `mcp.Client`, or another context manager of something with its methods.
    Listing and reading are steps. A tool is a step if it says that it is read-only or idempotent
    (in the last `list_tools`), an effect if not: it then finds `KEY_META` in its `_meta`. `rule`
    decides otherwise: a function of the tool's name and of what was listed of it (or None) that
    returns "step", "effect", or None for that rule. `name` is the server's, in the journal.

    Raises, at the calls: MCPError, the same at every replay; what the connection raises.
    """

    def __init__(
        self, connect: Callable[[], AbstractAsyncContextManager[Any]], *, name: str = "mcp",
        rule: Callable[[str, Tool | None], Treatment | None] | None = None,
    ) -> None:  # fmt: skip
        self._connect = connect
        self._name = name
        self._rule = rule
        self._tools: dict[str, Tool] = {}
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Self:
        """Begin; connects to nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def list_tools(self, **options: Any) -> ListToolsResult:
        """Return the server's tools."""
        found = await self._read("list_tools", ListToolsResult, **options)
        self._tools |= {tool.name: tool for tool in found.tools}
        return found

    async def list_resources(self, **options: Any) -> ListResourcesResult:
        """Return the server's resources."""
        return await self._read("list_resources", ListResourcesResult, **options)

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

    async def call_tool(
        self, name: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> CallToolResult:
        """Call a tool; `options` are those of the client's own `call_tool`."""
        listed = self._tools.get(name)
        treatment = (self._rule and self._rule(name, listed)) or _treatment(listed)
        label = f"{self._name}: {name}"[:NAME_CHARS_MAX]
        if treatment == "step":
            return await self._made(step.run, label, "call_tool", CallToolResult, name, arguments,
                                    **options)  # fmt: skip
        return await self._made(effect.run, label, "call_tool", CallToolResult, name, arguments,
                                keyed=True, **options)  # fmt: skip

    async def _read(
        self, method: str, result: type[ResultT], *args: Any, **options: Any
    ) -> ResultT:
        label = f"{self._name}: {method}"[:NAME_CHARS_MAX]
        return await self._made(step.run, label, method, result, *args, **options)

    async def _made(
        self, run: Any, label: str, method: str, result: type[ResultT], *args: Any,
        keyed: bool = False, **options: Any,
    ) -> ResultT:  # fmt: skip
        in_a_run = scope_or_none() is not None

        async def make(*args: Any) -> dict[str, Any]:
            client = await self._client()
            given = dict(options)
            if keyed and in_a_run:
                given["meta"] = {**(given.get("meta") or {}), KEY_META: idempotency_key()}
            try:
                made = await getattr(client, method)(*args, **given)
            except MCPError as error:  # the server's answer: not to be asked for again
                return {"error": _json(error.error)}
            return {"result": _json(made)}

        made = await run(label, make, *args)
        if "error" in made:
            data = ErrorData.model_validate(made["error"])
            raise MCPError(data.code, data.message, data.data)
        return result.model_validate(made["result"])

    async def _client(self) -> Any:
        if self._connection is None:
            self._connection = _Connection(self._connect)
        return await self._connection.client()


def _json(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def _treatment(tool: Tool | None) -> Treatment:
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
            self._opened.set_exception(error)
