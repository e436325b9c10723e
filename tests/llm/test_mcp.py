"""MCP calls of durable runs: recorded, made once, replayed without the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import ToolAnnotations

from durable_endpoints.integrations.mcp import KEY_META, DurableClient
from tests.engine.worlds import world
from tests.llm import test_requests as requests

CALLED: Counter[str] = Counter()
KEYS: list[str] = []
server = MCPServer("shop")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def price(item: str) -> int:
    """Return a price."""
    CALLED["price"] += 1
    return len(item)


@server.tool()
async def order(item: str, ctx: Any = None) -> str:
    """Order an item."""
    CALLED["order"] += 1
    return f"ordered {item}"


@server.resource("shop://news")
async def news() -> str:
    CALLED["news"] += 1
    return "all is well"


class Counting(Client):
    """A client that counts its connections, and what it was given."""

    async def __aenter__(self) -> Any:
        CALLED["connections"] += 1
        return await super().__aenter__()

    async def call_tool(self, name: str, arguments: Any = None, **options: Any) -> Any:
        KEYS.append((options.get("meta") or {}).get(KEY_META, ""))
        return await super().call_tool(name, arguments, **options)


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLED.clear()
    KEYS.clear()


def connect() -> Client:
    return Counting(server)


async def shop() -> Any:
    async with DurableClient(connect, name="shop") as client:
        tools = await client.list_tools()
        found = await client.call_tool("price", {"item": "pen"})
        ordered = await client.call_tool("order", {"item": "pen"})
        read = await client.read_resource("shop://news")
        try:
            await client.get_prompt("nothing")
        except MCPError as error:
            failed = [error.error.code, error.error.message]
        return [
            sorted(tool.name for tool in tools.tools), found.structured_content,
            ordered.content[0].text, read.contents[0].text, failed,
        ]  # fmt: skip


def test_calls_are_the_same_live_and_replayed() -> None:
    gate, done = asyncio.Event(), []

    async def body() -> Any:
        found = await shop()
        done.append(found)
        await gate.wait()
        return found

    async def main() -> None:
        bare = await shop()
        assert CALLED["connections"] == 1
        async with world() as one:
            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: bool(done))
            await one.engine.log.flush()
            await one.crash()
            gate.set()
            await one.boot()
            ended = await one.ended_for_good(started.id)
            assert await ended.result() == done[0] == bare
            names = [e.key.partition(" ")[2] for e in await one.entries(started.id)]
            assert names.count("shop: order") == 2  # intent and result
            assert names.count("shop: price") == 1

    requests.play(main)
    assert CALLED == {"connections": 2, "price": 2, "order": 2, "news": 2}
    assert KEYS[:3] == ["", "", ""] and len(KEYS[3]) == 40


def test_an_effect_is_called_again_with_its_key() -> None:
    async def main() -> None:
        async with world() as one:
            requests._BODY[:] = [shop]
            started = await one.start(requests.play_body)
            running = one.engine.runs[started.id]
            while running.durable_seq < 3:  # the run, the list, the price, the intent to order
                await running.progress()
            await one.crash()
            await one.boot()
            ended = await one.ended_for_good(started.id)
            assert (await ended.result())[2] == "ordered pen"

    requests.play(main)
    assert CALLED["price"] == 1
    assert len({key for key in KEYS if key}) == 1


def test_a_rule_of_ones_own() -> None:
    async def body() -> Any:
        async with DurableClient(connect, rule=lambda name, _: "step") as client:
            return (await client.call_tool("order", {"item": "x"})).content[0].text

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found == "ordered x"
    assert requests.kinds(entries) == ["STARTED", "STEP", "COMPLETED"]


def test_a_server_that_is_not_there() -> None:
    def nowhere() -> Client:
        return Client("http://127.0.0.1:1/mcp")

    async def body() -> Any:
        async with DurableClient(nowhere) as client:
            try:
                await client.list_tools()
            except BaseException as error:
                return type(error).__name__

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found in ("ConnectError", "ExceptionGroup", "StepFailed")
    assert requests.kinds(entries)[1] == "STEP_FAILED"
