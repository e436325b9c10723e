"""openai-agents with MCP servers in durable runs: the real packages, a real server process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from agents import Agent, Runner, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp

from durable_endpoints.integrations.openai_agents import durable_agent
from durable_endpoints.integrations.openai_agents_mcp import wrap_server
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import QUIET, Provider, called
from tests.llm.kills import survives_every_kill
from tests.llm.test_openai_agents import config
from tests.support.server import Server

pytestmark = pytest.mark.crash


@pytest.fixture(autouse=True)
def _no_tracing() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("shop")
    with Server("tests.llm.mcp_shop:app", directory, options=QUIET, health="/health") as one:
        yield one


def mcp_of(shop: Server, **options: Any) -> MCPServerStreamableHttp:
    params: Any = {"url": shop.url + "/mcp"}
    return MCPServerStreamableHttp(params, name="shop", **options)


def test_tools_of_mcp_servers_survive_every_kill(shop: Server, provider: Provider) -> None:
    run_config = config(provider)
    called(shop)

    async def main() -> Any:
        async with mcp_of(shop) as server:
            agent = durable_agent(Agent(name="Buyer", mcp_servers=[server], model="m?n=3"))

            async def body() -> Any:
                result = await Runner.run(agent, "Buy a pen.", run_config=run_config)
                outputs = [item.output for item in result.new_items if hasattr(item, "output")]
                return [result.final_output, outputs]

            return await survives_every_kill(body, provider)

    final, outputs = requests.play(main)
    assert final == "w0 w1 w2 "
    assert [output["text"] for output in outputs] == ["7", "ordered x"]
    # An effect that a crash cut is made again, and has its key again.
    orders = [call for call in called(shop) if call["tool"] == "order"]
    keys = [call["key"] for call in orders]
    assert all(len(key) == 40 for key in keys)
    assert len(keys) - len(set(keys)) <= 2


def test_a_replay_asks_no_server(shop: Server, provider: Provider) -> None:
    run_config = config(provider)
    called(shop)
    gate, done = asyncio.Event(), []

    async def main() -> None:
        async with mcp_of(shop) as server:
            agent = durable_agent(
                Agent(name="Buyer", mcp_servers=[server], model="m?n=3"), {"order": None}
            )

            async def body() -> Any:
                result = await Runner.run(agent, "Buy a pen.", run_config=run_config)
                done.append(result.final_output)
                await gate.wait()
                return result.final_output

            async with world() as one:
                requests._BODY[:] = [body]
                started = await one.start(requests.play_body)
                await requests.until(lambda: bool(done))
                await one.engine.log.flush()
                await one.crash()
                before = called(shop)
                assert [call["tool"] for call in before] == ["price", "order"]
                gate.set()
                await one.boot()
                ended = await one.ended_for_good(started.id)
                assert await ended.result() == done[0]
                names = [e.key.partition(" ")[2] for e in await one.entries(started.id)]
                assert names.count("shop: price") == 1 and "shop: order" not in names
                assert names.count("shop: list_tools") == 3  # once a turn
                # What is left as it is, is done again.
                assert [call["tool"] for call in called(shop)] == ["order"]

    requests.play(main)


def test_answers_and_errors_are_those_of_the_server(mcp_shop: Server) -> None:
    """Bare, live and replayed: what the library makes of an MCP error is its own affair."""

    async def ask(server: Any) -> Any:
        tools = await server.list_tools()
        found: list[Any] = [sorted(tool.name for tool in tools)]
        wrong = await server.call_tool("price", {"item": 1})
        found.append([wrong.is_error, wrong.content[0].text])
        for tool in ("refused", "order"):
            try:
                found.append((await server.call_tool(tool, {"item": "x"})).content[0].text)
            except Exception as error:
                found.append([type(error).__name__, str(error)])
        found.append((await server.list_prompts()).prompts[0].name)
        prompt = await server.get_prompt("greet", {"who": "you"})
        found.append(prompt.messages[0].content.text)
        read = await server.read_resource("shop://news")
        return [*found, read.contents[0].text]

    async def main() -> None:
        async with mcp_of(mcp_shop) as bare:
            expected = await ask(bare)
        assert expected[2][0] == "MCPError", expected
        gate, done = asyncio.Event(), []
        async with mcp_of(mcp_shop) as server:
            wrap_server(server, {})
            wrap_server(server, {})
            assert await ask(server) == expected  # outside a run

            async def body() -> Any:
                done.append(await ask(server))
                await gate.wait()
                return done[-1]

            async with world() as one:
                requests._BODY[:] = [body]
                started = await one.start(requests.play_body)
                await requests.until(lambda: bool(done))
                await one.engine.log.flush()
                await one.crash()
                called(mcp_shop)
                gate.set()
                await one.boot()
                ended = await one.ended_for_good(started.id)
                assert await ended.result() == done[0] == expected
                assert called(mcp_shop) == []

    requests.play(main)


def test_no_secret_of_an_address_is_recorded() -> None:
    server = MCPServerStreamableHttp({"url": "http://me:secret@host/mcp?key=secret"})
    wrap_server(server, {})
    assert server._durable_endpoints._label("x") == "streamable_http: http://host/mcp: x"  # type: ignore[attr-defined]
