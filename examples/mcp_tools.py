"""An MCP server whose tool calls survive the death of the server.

    pip install 'durable-endpoints[mcp]'
    durable run mcp_tools:app
    python mcp_tools.py coffee                   # in another terminal: an MCP client
    kill -9 <pid of the server>; durable run mcp_tools:app

What to notice:
- The client gets a task, and its result from the second server. Parts that the first one had
  finished are not done again; the report is published once.
- `/_durable/runs` shows the call as a run like any other: `durable runs`, the console, cancel.
- Other clients call the same tools, plainly, unless they send an idempotency key.
"""

from __future__ import annotations

import asyncio
import sys

from mcp import Client
from mcp.server import MCPServer
from mcp_types import TextContent

from durable_endpoints import DurableMiddleware, effect, idempotency_key, step
from durable_endpoints.integrations.mcp import Tasks, task_result
from durable_endpoints.integrations.mcp_server import durable_tools
from durable_endpoints.integrations.mcp_tasks import CreatedTask

URL = "http://127.0.0.1:8000/mcp"
server = MCPServer("reports")


@step
async def chapter(topic: str, number: int) -> str:
    await asyncio.sleep(1)
    print(f"chapter {number} of {topic}", flush=True)
    return f"{number}. What there is to say of {topic}"


@effect
async def publish(text: str) -> str:
    print(f"published, once, under {idempotency_key()}", flush=True)
    return text


@server.tool()
async def report(topic: str, chapters: int = 8) -> str:
    """Write a report, slowly, and publish it."""
    return await publish("\n".join([await chapter(topic, n + 1) for n in range(chapters)]))


durable_tools(server)
app = DurableMiddleware(server.streamable_http_app(), store="sqlite:///mcp_tools.db")


def connect(url: str) -> Client:
    return Client(url, extensions=[Tasks()])


async def ask(topic: str, url: str = URL) -> str:
    """Have a report written, however often the server is restarted meanwhile."""
    async with connect(url) as client:
        made = await client.session.call_tool("report", {"topic": topic}, allow_claimed=True)
    if isinstance(made, CreatedTask):
        print(f"task {made.task_id}", flush=True)  # keep it, and this program may be killed, too
        made = await task_result(lambda: connect(url), made.task_id)
    return "\n".join(part.text for part in made.content if isinstance(part, TextContent))


if __name__ == "__main__":
    print(asyncio.run(ask(sys.argv[1] if len(sys.argv) > 1 else "tea")))
