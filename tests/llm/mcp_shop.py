"""A plain MCP server, for clients under test; its calls are written down in `called.jsonl`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import ToolAnnotations
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints.integrations.mcp import KEY_META

server = MCPServer("plain shop")


def note(tool: str, ctx: Context[Any, Any], **more: Any) -> None:
    key = (ctx.request_context.meta or {}).get(KEY_META)
    with Path("called.jsonl").open("a") as file:
        file.write(json.dumps({"tool": tool, "key": key, **more}) + "\n")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def price(item: str, ctx: Context[Any, Any]) -> int:
    """Return a price."""
    note("price", ctx)
    return 6 + len(item)


@server.tool()
async def order(item: str, ctx: Context[Any, Any]) -> str:
    """Order an item."""
    note("order", ctx)
    return f"ordered {item}"


@server.custom_route("/health", methods=["GET"])
async def health(_: Request) -> Response:
    return Response("ok")


@server.prompt()
def greet(who: str) -> str:
    """Greet."""
    return f"Hello {who}!"


@server.resource("shop://news")
async def news() -> str:
    """Tell news."""
    return "all is well"


if os.environ.get("MORE"):

    @server.tool()
    async def refused(item: str, ctx: Context[Any, Any]) -> str:
        """Refuse."""
        note("refused", ctx)
        raise MCPError(-32051, "closed", {"item": item})

    @server.tool(annotations=ToolAnnotations(idempotent_hint=True))
    async def slow(seconds: float, ctx: Context[Any, Any]) -> str:
        """Report progress, and take a while."""
        note("slow", ctx)
        await ctx.report_progress(1, 2, "half")
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class():
            note("slow", ctx, cancelled=True)
            raise
        return "slept"


async def warm() -> None:
    """Everything is imported."""


app = server.streamable_http_app()
