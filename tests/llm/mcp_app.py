"""MCP servers whose tool calls are runs, for the crash tests; `/low/mcp` is a low-level one.

What the tools do is written down in `ran.txt`, a line each.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer, Server
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from durable_endpoints import DurableMiddleware, effect, step
from durable_endpoints.integrations.mcp_server import durable_tools


def ran(what: str) -> None:
    with Path("ran.txt").open("a") as file:
        file.write(f"{what}\n")


class Shop:
    greeting = "welcome"


@asynccontextmanager
async def opened(_: MCPServer) -> AsyncIterator[Shop]:
    yield Shop()


server = MCPServer("shop", lifespan=opened)


@step
async def part(tag: str, number: int) -> int:
    await asyncio.sleep(0.05)
    ran(f"{tag} {number}")
    return number


@server.tool()
async def add_up(tag: str, parts: int, ctx: Context[Shop, Any]) -> str:
    """Add up, slowly."""
    await ctx.report_progress(0, parts)
    found = [await part(tag, number) for number in range(parts)]
    return f"{ctx.request_context.lifespan_context.greeting}: {sum(found)}"


@server.tool()
async def quick(tag: str) -> str:
    """Answer at once."""
    ran(tag)
    return "done"


async def unbook(tag: str) -> None:
    ran(f"{tag} unbooked")


@effect(compensate=unbook)
async def book(tag: str) -> str:
    ran(f"{tag} booked")
    return tag


@server.tool()
async def trip(tag: str, how: str) -> str:
    """Book, and fail."""
    await book(tag)
    if how == "error":
        raise ToolError("no hotel")
    if how == "protocol":
        raise MCPError(-32050, "no room", {"tag": tag})
    await asyncio.sleep(60)
    return "booked"


@server.tool()
async def refused(tag: str) -> str:
    """Fail, with nothing to undo."""
    ran(tag)
    raise MCPError(-32051, "closed")


class Colour(BaseModel):
    colour: str


class Size(BaseModel):
    size: int


def which_colour() -> Elicit[Colour]:
    return Elicit("Which colour?", Colour)


def which_size() -> Elicit[Size]:
    return Elicit("Which size?", Size)


@server.tool()
async def order(
    tag: str, colour: Annotated[Colour, Resolve(which_colour)],
    size: Annotated[Size, Resolve(which_size)],
) -> str:  # fmt: skip
    """Ask, then order."""
    return f"{await part(tag, size.size)} {colour.colour}"


@server.tool()
async def guarded(tag: str) -> str:
    """Be for clients with tasks only."""
    return tag


@server.tool()
async def unlisted(tag: str) -> str:
    """Be a plain tool."""
    ran(tag)
    return tag


async def list_tools(*_: Any) -> ListToolsResult:
    return ListToolsResult(tools=[Tool(name="low", input_schema={"type": "object"})])


async def call_tool(_: Any, params: CallToolRequestParams) -> CallToolResult:
    arguments = params.arguments or {}
    if arguments.get("fail"):
        await asyncio.sleep(0.3)
        raise ValueError("as asked")
    found = [await part(arguments["tag"], number) for number in range(arguments["parts"])]
    return CallToolResult(content=[TextContent(text=str(sum(found)))])


low = Server("low", on_list_tools=list_tools, on_call_tool=call_tool)

durable_tools(
    server, tools=["add_up", "quick", "trip", "refused", "order"], required=["guarded"],
    patience=0.1, poll_interval=0.02,  # so that a slow disk does not make a slow tool quick
)  # fmt: skip
durable_tools(low, patience=0, poll_interval=0.02)
shop_app, low_app = server.streamable_http_app(), low.streamable_http_app()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server.session_manager.run())
        await stack.enter_async_context(low.session_manager.run())
        yield


def user(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


async def warm() -> None:
    """Everything is imported."""


app = DurableMiddleware(
    Starlette(routes=[Mount("/low", low_app), Mount("/", shop_app)], lifespan=lifespan),
    store=os.environ.get("STORE", "sqlite:///durable.db"), principal=user,
)  # fmt: skip
