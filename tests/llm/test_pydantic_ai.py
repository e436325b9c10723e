"""pydantic-ai's agents in durable runs: tools, streams, approvals; ended at every step."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.external_events import wait_for_external_event
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.toolsets import FunctionToolset

from durable_endpoints import effect, idempotency_key, step
from durable_endpoints.integrations.pydantic_ai import DurableEndpoints
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider
from tests.llm.kills import survives_every_kill


def provider_of(provider: Provider) -> OpenAIProvider:
    client = requests.client_for_tests()
    return OpenAIProvider(base_url=provider.url + "/v1", api_key="sk", http_client=client)


def parts_of(messages: list[ModelMessage]) -> list[list[str]]:
    """Return what was said, without times and ids."""
    return [
        [
            f"{part.part_kind} {getattr(part, 'tool_name', '')} {getattr(part, 'content', '')!r}"
            for part in message.parts
        ]
        for message in messages
    ]


@dataclass
class Bank:
    customer: int


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_tools_survive_every_kill(model: Any, provider: Provider) -> None:
    ran: Counter[str] = Counter()
    tools = FunctionToolset[Bank](id="accounts")

    @tools.tool
    async def balance(ctx: RunContext[Bank], pending: bool) -> float:
        ran["balance"] += 1
        return 100.0 + ctx.deps.customer + pending

    @tools.tool(metadata={"durable_endpoints": {"effect": True}})
    async def block(ctx: RunContext[Bank], reason: str) -> str:
        ran["block"] += 1
        return f"{reason} {len(idempotency_key())}"

    agent = Agent(
        model("m?n=4", provider=provider_of(provider)), deps_type=Bank, name="bank",
        toolsets=[tools], capabilities=[DurableEndpoints()], instructions="You help customers.",
    )  # fmt: skip

    async def body() -> Any:
        result = await agent.run("What is my balance?", deps=Bank(7))
        return [result.output, parts_of(result.all_messages())]

    async def main() -> Any:
        return await survives_every_kill(body, provider)

    output, parts = requests.play(main)
    assert output == "w0 w1 w2 w3 "
    assert "tool-return balance 108.0" in str(parts)
    assert "tool-return block 'x 40'" in str(parts)


def test_a_stream_goes_token_by_token(provider: Provider) -> None:
    agent = Agent(
        OpenAIChatModel("m?n=30&pace=100", provider=provider_of(provider)), name="teller",
        capabilities=[DurableEndpoints()],
    )  # fmt: skip
    times: list[float] = []

    async def body() -> Any:
        found = []
        async with agent.run_stream("Tell me a story.") as result:
            async for text in result.stream_text(delta=True, debounce_by=None):
                found.append(text)
                times.append(asyncio.get_running_loop().time())
        return "".join(found)

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found == "".join(f"w{n} " for n in range(30))
    assert requests.kinds(entries).count("ITEM") > 15
    assert times[-1] - times[0] > 0.08, "the words came all at once"


def test_a_stream_with_tools_survives_every_kill(provider: Provider) -> None:
    tools = FunctionToolset[None](id="weather")

    @tools.tool_plain
    async def forecast(city: str) -> str:
        return f"sun in {city}"

    agent = Agent(
        OpenAIChatModel("m?n=4", provider=provider_of(provider)), name="weather",
        toolsets=[tools], capabilities=[DurableEndpoints()],
    )  # fmt: skip

    async def body() -> Any:
        async with agent.run_stream("How will it be?") as result:
            found = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        return ["".join(found), parts_of(result.all_messages())]

    async def main() -> Any:
        return await survives_every_kill(body, provider)

    output, parts = requests.play(main)
    assert output == "w0 w1 w2 w3 " and "sun in x" in str(parts)


@pytest.mark.parametrize("as_step", [True, False])
def test_an_agent_that_asks_another_survives_every_kill(as_step: bool, provider: Provider) -> None:
    """As one step, which is made whole or again; or left alone, and recorded request by request."""
    model = OpenAIChatModel("m?n=4", provider=provider_of(provider))
    writer = Agent(model, output_type=list[str], name="writer", capabilities=[DurableEndpoints()])
    tools = FunctionToolset[None](id="jokes")

    @tools.tool(metadata={} if as_step else {"durable_endpoints": False})
    async def jokes(ctx: RunContext[None], count: int) -> list[str]:
        return (await writer.run(f"Write {count} jokes.", usage=ctx.usage)).output

    agent = Agent(model, name="chooser", toolsets=[tools], capabilities=[DurableEndpoints()])

    async def body() -> Any:
        result = await agent.run("Tell me a joke.")
        return [result.output, parts_of(result.all_messages())]

    async def main() -> Any:
        if not as_step:
            return await survives_every_kill(body, provider)
        async with world() as one:
            return (await requests.run(one, body))[0]

    output, parts = requests.play(main)
    assert output == "w0 w1 w2 w3 " and "tool-return jokes ['x']" in str(parts)
    assert len(provider.counted()) <= 3


class City(BaseModel):
    city: str
    people: int


def test_a_model_by_its_name(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    agent = Agent(
        "openai-chat:m?n=3", name="named",
        capabilities=[DurableEndpoints(http_client=requests.client_for_tests())],
    )  # fmt: skip

    async def body() -> Any:
        return (await agent.run("hello")).output

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found == "w0 w1 w2 "
    assert any("/chat/completions" in entry.key for entry in entries)


def test_other_models_are_steps() -> None:
    agent = Agent(
        TestModel(custom_output_args={"city": "Paris", "people": 3}), output_type=City,
        name="other", capabilities=[DurableEndpoints()],
    )  # fmt: skip

    async def body() -> Any:
        return (await agent.run("hello")).output.model_dump()

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert found == {"city": "Paris", "people": 3}
    assert [e.key.partition(" ")[2] for e in entries if e.kind.name == "STEP"] == [
        "other__model.request"
    ]


def test_tools_that_are_steps_themselves(provider: Provider) -> None:
    tools = FunctionToolset[None](id="own")

    @tools.tool_plain
    @step(name="look it up")
    async def look_up(what: str) -> str:
        return f"found {what}"

    @tools.tool_plain
    @effect(name="order it")
    async def order(what: str) -> str:
        return f"ordered {what}"

    @tools.tool_plain(metadata={"durable_endpoints": False})
    async def both(what: str) -> str:
        return await look_up(what)

    agent = Agent(
        OpenAIChatModel("m?n=1", provider=provider_of(provider)), name="own", toolsets=[tools],
        capabilities=[DurableEndpoints()],
    )  # fmt: skip

    async def body() -> Any:
        return parts_of((await agent.run("do it")).all_messages())

    async def main() -> Any:
        async with world() as one:
            return await requests.run(one, body)

    found, entries = requests.play(main)
    assert "found x" in str(found) and "ordered x" in str(found)
    names = [e.key.partition(" ")[2] for e in entries if e.kind.name in ("STEP", "INTENT")]
    assert [name for name in names if not name.startswith("POST")] == [
        "look it up", "order it", "order it", "look it up",
    ]  # fmt: skip


def test_an_answer_from_outside(provider: Provider) -> None:
    asked: list[str] = []
    tools = FunctionToolset[None](id="asking")

    @tools.tool_plain(metadata={"durable_endpoints": False})
    async def ask_boss(question: str) -> str:
        return str(await wait_for_external_event("boss", ask=asked.append))

    agent = Agent(
        OpenAIChatModel("m?n=2", provider=provider_of(provider)), name="asking", toolsets=[tools],
        capabilities=[DurableEndpoints()],
    )  # fmt: skip

    async def body() -> Any:
        return parts_of((await agent.run("may I?")).all_messages())

    async def main() -> Any:
        async with world() as one:
            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            async with asyncio.timeout(20):  # it is known durably that it has asked
                while "WAIT" not in requests.kinds(await one.entries(started.id)):
                    await asyncio.sleep(0.005)
            await one.crash()
            await one.boot()
            _, run_id, _, name = asked[0].split("/")
            assert run_id == started.id
            await (await one.run_of(run_id)).signal(name, "yes, you may")
            ended = await one.ended_for_good(started.id)
            return await ended.result()

    assert "tool-return ask_boss 'yes, you may'" in str(requests.play(main))
    assert len(asked) == 1
    assert len(provider.counted()) == 2
