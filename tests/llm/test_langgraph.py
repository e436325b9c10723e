"""LangGraph in durable runs: nodes that ask models, threads kept elsewhere, interrupts."""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

import openai
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from durable_endpoints import NotDurable, step, wait_for_signal
from durable_endpoints.integrations.langgraph import DurableSaver
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider
from tests.llm.kills import survives_every_kill


class State(TypedDict):
    said: Annotated[list[str], operator.add]


def graph_of(provider: Provider, saver: Any, ran: list[str]) -> Any:
    client = openai.AsyncOpenAI(
        base_url=provider.url + "/v1", api_key="sk", http_client=requests.client_for_tests()
    )

    @step
    async def remembered(what: str) -> str:
        ran.append(what)
        return f"noted {what}"

    async def think(state: State) -> State:
        asked: Any = [{"role": "user", "content": " ".join(state["said"])}]
        answer = await client.chat.completions.create(model="m?n=2", messages=asked)
        return {"said": [str(answer.choices[0].message.content)]}

    async def note(state: State) -> State:
        return {"said": [await remembered(f"{len(state['said'])}")]}

    async def other(state: State) -> State:
        return {"said": [f"other {len(state['said'])}"]}

    builder = StateGraph(State)
    for name, node in (("think", think), ("note", note), ("other", other)):
        builder.add_node(name, node)  # type: ignore[call-overload]
    builder.add_edge(START, "think")
    builder.add_edge("think", "note")
    builder.add_edge("think", "other")
    builder.add_edge("note", END)
    builder.add_edge("other", END)
    return builder.compile(checkpointer=saver)


WHOLE = ["hello", "w0 w1 ", "noted 2", "other 2", "again", "w0 w1 ", "noted 6", "other 6"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_thread_survives_every_kill(durability: str, provider: Provider) -> None:
    ran: list[str] = []
    threads = [InMemorySaver()]
    numbers = iter(range(1000))

    async def main() -> None:
        graph = graph_of(provider, DurableSaver(threads[0]), ran)
        current: list[Any] = []

        async def body() -> Any:
            config: Any = {"configurable": {"thread_id": current[0]}}
            for text in ("hello", "again"):
                found = await graph.ainvoke({"said": [text]}, config, durability=durability)
            return found["said"]

        async with world() as one:
            current[:] = [f"thread {next(numbers)}"]
            found, entries = await requests.run(one, body)
            assert found == WHOLE
            usual = history(threads[0], current[0])
        for seq in range(1, len(entries) - 1, 2):
            current[:] = [f"thread {next(numbers)}"]
            async with world() as one:
                requests._BODY[:] = [body]
                started = await one.start(requests.play_body)
                running = one.engine.runs[started.id]
                while running.durable_seq < seq and not running.ended:
                    await running.progress()
                await one.crash()
                await one.boot()
                ended = await one.ended_for_good(started.id)
                assert await ended.result() == WHOLE, f"ended at entry {seq} of {len(entries)}"
            assert history(threads[0], current[0])[-1] == usual[-1]

    requests.play(main)


def history(saver: InMemorySaver, thread: str) -> list[list[str]]:
    """Return a thread's states from the last back to the first, by their parents."""
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    found = []
    while config is not None:
        item = saver.get_tuple(config)
        assert item is not None, "a checkpoint's parent is missing"
        found.append(item.checkpoint["channel_values"].get("said", []))
        config = item.parent_config
    return found[::-1]


def test_a_graph_without_a_saver_survives_every_kill(provider: Provider) -> None:
    async def main() -> Any:
        graph = graph_of(provider, None, [])

        async def body() -> Any:
            return (await graph.ainvoke({"said": ["hello"]}))["said"]

        return await survives_every_kill(body, provider)

    assert requests.play(main) == WHOLE[:4]


def test_an_interrupt_is_answered_by_a_signal() -> None:
    asked: list[str] = []

    async def node(state: State) -> State:
        asked.append("asked")
        return {"said": [interrupt(f"may I, after {state['said'][-1]}?")]}

    builder = StateGraph(State)
    builder.add_node("node", node)  # type: ignore[call-overload]
    builder.add_edge(START, "node")
    threads = InMemorySaver()
    graph = builder.compile(checkpointer=DurableSaver(threads))

    async def body() -> Any:
        config: Any = {"configurable": {"thread_id": "one"}}
        found = await graph.ainvoke({"said": ["hello"]}, config)
        while "__interrupt__" in found:
            answer = await wait_for_signal("answer")
            found = await graph.ainvoke(Command(resume=answer), config)
        return found["said"]

    async def main() -> Any:
        async with world() as one:
            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: bool(asked))
            while (record := await one.store.get(started.id)) is None or record.status == "running":
                await asyncio.sleep(0.01)
            await one.crash()
            await one.boot()
            await (await one.run_of(started.id)).signal("answer", "you may")
            ended = await one.ended_for_good(started.id)
            return await ended.result()

    assert requests.play(main) == ["hello", "you may"]


def test_the_synchronous_methods_are_for_outside() -> None:
    builder = StateGraph(State)
    builder.add_node("node", lambda state: {"said": ["x"]})  # type: ignore[call-overload]
    builder.add_edge(START, "node")
    graph = builder.compile(checkpointer=DurableSaver(InMemorySaver()))
    config: Any = {"configurable": {"thread_id": "one"}}
    assert graph.invoke({"said": []}, config)["said"] == ["x"]
    assert len(list(graph.get_state_history(config))) == 3

    async def body() -> Any:
        with pytest.raises(NotDurable, match="ainvoke"):
            graph.get_state(config)

    async def main() -> None:
        async with world() as one:
            await requests.run(one, body)

    requests.play(main)
