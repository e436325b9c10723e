"""MCP calls of durable runs: recorded, made once, replayed without the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ToolAnnotations

from durable_endpoints import Retry, RunCancelled, step
from durable_endpoints.integrations.mcp import KEY_META, DurableClient
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import called
from tests.support.server import Server

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
        CALLED["connections"] += 1
        return Client("http://127.0.0.1:1/mcp")

    async def body() -> Any:
        found = []
        for retry in (None, Retry(attempts=2, initial=0.01)):
            async with DurableClient(nowhere, retry=retry) as client:
                try:
                    await client.list_tools()
                except Exception as error:
                    found.append(type(error).__name__)
        return found

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found == ["ConnectError", "ConnectError"]
    kinds = requests.kinds(entries)
    assert kinds[1] == "STEP_FAILED" and kinds.count("ATTEMPT") >= 1
    assert CALLED["connections"] == 3


# --- a real server, over HTTP


async def everything(client: Any, *, outside: bool = False) -> list[Any]:
    """Ask for everything that can be asked for; note what is seen of it."""
    heard: list[Any] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append([done, total, message])

    found: list[Any] = [sorted(tool.name for tool in (await client.list_tools()).tools)]
    slow = await client.call_tool("slow", {"seconds": 0}, progress_callback=progress)
    found.append(slow.model_dump(mode="json", exclude={"meta"}))
    for tool, arguments in (
        ("price", {"item": "pen"}), ("price", {"item": 1}), ("order", {"item": "x"}),
        ("refused", {"item": "x"}), ("nothing", {}),
    ):  # fmt: skip
        try:
            made = await client.call_tool(tool, arguments)
            found.append(made.model_dump(mode="json", exclude={"meta"}))
        except MCPError as error:
            found.append([error.code, error.message, error.data, str(error), repr(error)])
    try:
        await client.call_tool("slow", {"seconds": 5}, read_timeout_seconds=0.1)
    except MCPError as error:
        found.append([error.code, error.message])
    found.append((await client.list_resources()).resources[0].uri)
    found.append((await client.read_resource("shop://news")).contents[0].text)
    found.append((await client.list_resource_templates()).resource_templates)
    found.append((await client.list_prompts()).prompts[0].name)
    found.append((await client.get_prompt("greet", {"who": "you"})).messages[0].content.text)
    reference = PromptReference(name="greet")
    try:
        await client.complete(reference, {"name": "who", "value": "y"})
    except MCPError as error:
        found.append([error.code, error.message])
    return [*found, heard] if outside else [*found, len(heard)]


@pytest.mark.crash
def test_everything_is_as_with_the_plain_client(mcp_shop: Server) -> None:
    gate, done = asyncio.Event(), []
    url = mcp_shop.url + "/mcp"

    async def body() -> Any:
        async with DurableClient(lambda: Client(url), name="shop") as client:
            done.append(await everything(client))
        await gate.wait()
        return done[-1]

    async def main() -> None:
        async with Client(url) as bare:
            expected = await everything(bare, outside=True)
        assert expected[-1] == [[1, 2, "half"]]
        called(mcp_shop)
        async with world() as one:
            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: bool(done))
            await one.engine.log.flush()
            await one.crash()
            assert done[0] == [*expected[:-1], 1]
            assert {call["tool"] for call in called(mcp_shop)} >= {"price", "order", "slow"}
            gate.set()
            await one.boot()
            ended = await one.ended_for_good(started.id)
            # The same, without the server; progress was then, and is not again.
            assert await ended.result() == [*expected[:-1], 0]
            assert called(mcp_shop) == []

    requests.play(main)


@pytest.mark.crash
def test_a_cancelled_run_cancels_the_call(mcp_shop: Server) -> None:
    url = mcp_shop.url + "/mcp"

    async def body() -> Any:
        async with DurableClient(lambda: Client(url)) as client:
            return await client.call_tool("slow", {"seconds": 30})

    async def main() -> None:
        called(mcp_shop)
        file = mcp_shop.directory / "called.jsonl"
        async with world() as one:
            requests._BODY[:] = [body]
            run = await one.start(requests.play_body)
            await requests.until(file.exists)
            await run.cancel()
            await requests.until(lambda: "cancelled" in file.read_text())
            with pytest.raises(RunCancelled):
                await run.result()

    requests.play(main)


@pytest.mark.crash
def test_a_server_that_was_restarted_is_connected_to_again(mcp_shop: Server) -> None:
    """Between two calls, and in the midst of one."""
    url, told = mcp_shop.url + "/mcp", asyncio.Event()

    async def body() -> Any:
        async with DurableClient(lambda: Client(url), name="shop") as client:
            await client.list_tools()
            await step.run("told", told.wait)
            slow = await client.call_tool("slow", {"seconds": 4})
            ordered = await client.call_tool("order", {"item": "pen"})
            return [slow.content[0].text, ordered.content[0].text]

    async def main() -> None:
        called(mcp_shop)
        file = mcp_shop.directory / "called.jsonl"
        async with world() as one:
            requests._BODY[:] = [body]
            run = await one.start(requests.play_body)
            running = one.engine.runs[run.id]
            while running.durable_seq < 1:
                await running.progress()
            await asyncio.to_thread(mcp_shop.restart)
            told.set()
            await requests.until(lambda: file.exists() and bool(file.read_text()))
            await asyncio.to_thread(mcp_shop.restart)
            async with asyncio.timeout(20):
                assert await run.result() == ["slept", "ordered pen"]
            kinds = requests.kinds(await one.entries(run.id))
            assert "ATTEMPT" in kinds  # the call that was cut
        assert [call["tool"] for call in called(mcp_shop)] == ["slow", "slow", "order"]

    requests.play(main)
