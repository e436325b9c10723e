"""openai-agents: MCP servers whose calls are steps and effects of the run around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from durable_endpoints import effect, idempotency_key, step
from durable_endpoints.engine.calls import scope_or_none
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.limits import NAME_CHARS_MAX

if TYPE_CHECKING:
    from agents.mcp import MCPServer
    from mcp_types import Tool

_MARK: Final = "_durable_endpoints"
# A server is named after its address unless it is given a name.
_SECRETS: Final = re.compile(r"(?<=//)[^/@\s]*@|\?\S*")
Tools = Mapping[str, Mapping[str, Any] | None]


def wrap_server(server: MCPServer, options: Tools) -> None:
    """Make steps and effects of what a server is asked in a run; in place, once.

    See `durable_agent`, whose `tools` are the `options`.
    """
    if not hasattr(server, _MARK):
        setattr(server, _MARK, _Wrapped(server, options))


class _Wrapped:
    """One server, its own methods, and what every run has seen of its tools."""

    def __init__(self, server: MCPServer, options: Tools) -> None:
        # Not at the top: openai-agents does without MCP.
        from mcp_types import GetPromptResult, ListPromptsResult, ReadResourceResult

        self._name = _SECRETS.sub("", server.name)
        self._options = options
        self._listed: WeakKeyDictionary[LiveRun, dict[str, Tool]] = WeakKeyDictionary()
        self._list_tools, self._call_tool = server.list_tools, server.call_tool
        server.list_tools = self.list_tools  # type: ignore[method-assign]
        server.call_tool = self.call_tool  # type: ignore[method-assign]
        for method, result in (
            ("list_prompts", ListPromptsResult),
            ("get_prompt", GetPromptResult),
            ("read_resource", ReadResourceResult),
        ):
            setattr(server, method, self._reading(method, getattr(server, method), result))

    def _label(self, what: str) -> str:
        return f"{self._name}: {what}"[:NAME_CHARS_MAX]

    def _reading(self, method: str, ask: Callable[..., Any], result: type[Any]) -> Any:
        from durable_endpoints.integrations.mcp import recorded

        async def read(*args: Any, **kwargs: Any) -> Any:
            if scope_or_none() is None:
                return await ask(*args, **kwargs)

            async def call(args: list[Any], kwargs: dict[str, Any]) -> Any:
                return await ask(*args, **kwargs)

            return await recorded(step(name=self._label(method)), call, result, list(args), kwargs)

        return read

    async def list_tools(self, run_context: Any = None, agent: Any = None) -> list[Tool]:
        """See `MCPServer.list_tools`."""
        from mcp_types import ListToolsResult

        from durable_endpoints.integrations.mcp import recorded

        scope = scope_or_none()
        if scope is None:
            return await self._list_tools(run_context, agent)

        async def ask() -> ListToolsResult:
            return ListToolsResult(tools=await self._list_tools(run_context, agent))

        found = await recorded(step(name=self._label("list_tools")), ask, ListToolsResult)
        self._listed.setdefault(scope.run, {}).update({tool.name: tool for tool in found.tools})
        return found.tools

    async def call_tool(
        self, tool_name: str, arguments: dict[str, Any] | None, meta: dict[str, Any] | None = None
    ) -> Any:
        """See `MCPServer.call_tool`."""
        from mcp_types import CallToolResult

        from durable_endpoints.integrations.mcp import KEY_META, recorded, treatment_of

        scope = scope_or_none()
        own = self._options.get(tool_name, {})
        if scope is None or own is None:
            return await self._call_tool(tool_name, arguments, meta=meta)
        options = dict(own)
        listed = self._listed.get(scope.run, {}).get(tool_name)
        is_effect = options.pop("effect", treatment_of(listed) == "effect")

        async def call(arguments: dict[str, Any] | None) -> Any:
            given = meta
            if is_effect:
                given = {**(meta or {}), KEY_META: idempotency_key()}
            return await self._call_tool(tool_name, arguments, meta=given)

        kind: Any = effect if is_effect else step
        made = kind(name=self._label(tool_name), **options)
        return await recorded(made, call, CallToolResult, arguments)
