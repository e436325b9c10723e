"""openai-agents in durable runs: tools, streams, hand-offs, sessions, approvals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import (
    Agent,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)

from durable_endpoints import idempotency_key
from durable_endpoints.integrations.openai_agents import (
    DurableSession,
    durable_agent,
    durable_provider,
    run_with_approvals,
)
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider
from tests.llm.kills import survives_every_kill


@pytest.fixture(autouse=True)
def _no_tracing() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


def config(provider: Provider, **options: Any) -> RunConfig:
    made = durable_provider(
        http_client=requests.client_for_tests(), base_url=provider.url + "/v1", api_key="sk",
        **options,
    )  # fmt: skip
    return RunConfig(model_provider=made)


@pytest.mark.parametrize("use_responses", [True, False])
def test_tools_survive_every_kill(use_responses: bool, provider: Provider) -> None:
    ran: Counter[str] = Counter()

    @function_tool
    async def get_weather(city: str) -> str:
        """Return the weather."""
        ran["weather"] += 1
        return f"The weather in {city} is sunny."

    @function_tool
    async def book(seats: int) -> str:
        """Book seats."""
        ran["book"] += 1
        return f"{seats} seats, {len(idempotency_key())}"

    agent = durable_agent(
        Agent(name="Hello world", instructions="Help.", tools=[get_weather, book], model="m?n=4"),
        {"book": {"effect": True}},
    )
    run_config = config(provider, use_responses=use_responses)

    async def body() -> Any:
        result = await Runner.run(agent, "What's the weather in Tokyo?", run_config=run_config)
        outputs = [item.output for item in result.new_items if hasattr(item, "output")]
        return [result.final_output, outputs]

    found = requests.play(lambda: survives_every_kill(body, provider))
    assert found == ["w0 w1 w2 w3 ", ["The weather in x is sunny.", "3 seats, 40"]]


def test_a_stream_with_tools_survives_every_kill(provider: Provider) -> None:
    @function_tool
    def how_many_jokes() -> int:
        """Return how many jokes to tell."""
        return 3

    agent = durable_agent(Agent(name="Joker", tools=[how_many_jokes], model="m?n=5"))
    run_config = config(provider)

    async def body() -> Any:
        found: list[str] = []
        result = Runner.run_streamed(agent, input="Hello", run_config=run_config)
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                if event.data.type == "response.output_text.delta":
                    found.append(event.data.delta)
            else:
                found.append(event.type)
        return found

    found = requests.play(lambda: survives_every_kill(body, provider))
    assert [text for text in found if text.startswith("w")] == ["w0 ", "w1 ", "w2 ", "w3 ", "w4 "]


def test_hand_offs_survive_every_kill(provider: Provider) -> None:
    @function_tool
    async def answer_in_spanish(text: str) -> str:
        """Translate."""
        return f"¡{text}!"

    spanish = Agent(name="Spanish", tools=[answer_in_spanish], model="m?n=2")
    triage = durable_agent(Agent(name="Triage", handoffs=[spanish], model="m?n=2"))
    run_config = config(provider)

    async def body() -> Any:
        result = await Runner.run(triage, "Hola, ¿cómo estás?", run_config=run_config)
        return [result.last_agent.name, result.final_output]

    found = requests.play(lambda: survives_every_kill(body, provider))
    assert found[0] == "Spanish"
    # The transfer counts as a tool's answer to this provider, so the agent's own tool is not used.
    assert found[1] == "w0 w1 "


def test_a_session_gets_everything_once(provider: Provider, tmp_path: Path) -> None:
    agent = Agent(name="Memory", model="m?n=2")
    run_config = config(provider)

    async def one_kill(seq: int) -> tuple[int, int]:
        inner = SQLiteSession("user", tmp_path / f"{seq}.db")

        async def body() -> Any:
            session = DurableSession(inner)
            await Runner.run(agent, "one", session=session, run_config=run_config)
            result = await Runner.run(agent, "two", session=session, run_config=run_config)
            return result.final_output

        async with world() as one:
            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            running = one.engine.runs[started.id]
            while running.durable_seq < seq and not running.ended:
                await running.progress()
            await one.crash()
            length = len(await one.entries(started.id))
            await one.boot()
            ended = await one.ended_for_good(started.id)
            assert await ended.result() == "w0 w1 "
            items = await inner.get_items()
            inner.close()
            return length, len(items)

    async def main() -> None:
        for seq in range(1, 16):
            length, items = await one_kill(seq)
            assert items == 4, f"ended at entry {seq} of {length}"

    requests.play(main)


def test_a_person_is_asked(provider: Provider) -> None:
    @function_tool(needs_approval=True)
    async def refund(order: int) -> str:
        """Refund an order."""
        return f"refunded {order}"

    agent = durable_agent(Agent(name="Refunds", tools=[refund], model="m?n=2"))
    run_config = config(provider)

    async def main() -> Any:
        async with world() as one:

            async def body() -> Any:
                result = await run_with_approvals(agent, "refund it", run_config=run_config)
                outputs = [item.output for item in result.new_items if hasattr(item, "output")]
                return [result.final_output, outputs]

            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: len(provider.counted()) == 1)
            async with asyncio.timeout(10):
                while True:
                    record = await one.store.get(started.id)
                    if record is not None and record.status == "suspended":
                        break
                    await asyncio.sleep(0.01)
            await one.crash()
            await one.boot()
            run = await one.run_of(started.id)
            await run.signal("refund call_0", {"approved": True})
            ended = await one.ended_for_good(started.id)
            return await ended.result()

    assert requests.play(main) == ["w0 w1 ", ["refunded 3"]]
    assert len(provider.counted()) == 2


def test_agents_as_tools_are_left_alone() -> None:
    inner = Agent(name="Inner")
    tool = inner.as_tool("ask_inner", "Ask it.")
    before = tool.on_invoke_tool
    durable_agent(Agent(name="Outer", tools=[tool]))
    assert tool.on_invoke_tool is before
    assert agents.__name__
