# mypy: disable-error-code="import-not-found,untyped-decorator"
"""The work on LangGraph: a graph of one node a step, AsyncSqliteSaver, BENCH_MODE its durability.

"sync" writes a checkpoint before the next node, "async" (its default) while it runs, "exit" when
the graph ends. There is no durable accept and no recovery at start in the library, so this app
looks for unfinished threads at start and invokes them again, as its documentation suggests.
BENCH_DIR is where the database goes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import add
from typing import Annotated, Any
from uuid import uuid4

import aiosqlite
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from bench.apps import work

DURABILITY = os.environ["BENCH_MODE"]
STEPS = 20  # a graph's shape is fixed; every workload of the bench has 20 steps


class State(TypedDict):
    job: int
    step_ms: float
    results: Annotated[list[dict[str, Any]], add]


class ChatState(TypedDict):
    tokens: int
    pace_ms: float
    text: str


def _node(number: int) -> Any:
    async def node(state: State) -> dict[str, Any]:
        if state["step_ms"]:
            work.executed("began", state["job"], number)
            await asyncio.sleep(work.step_seconds(state["job"], number, state["step_ms"]))
            work.executed("ended", state["job"], number)
        return {"results": [work.result(number)]}

    return node


def _steps_graph() -> Any:
    graph = StateGraph(State)
    names = [f"step{n}" for n in range(STEPS)]
    for number, name in enumerate(names):
        graph.add_node(name, _node(number))
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    return graph


async def _stream(state: ChatState) -> dict[str, str]:
    write = get_stream_writer()
    for number in range(state["tokens"]):
        if state["pace_ms"]:
            await asyncio.sleep(state["pace_ms"] / 1000)
        write(work.token(number))
    return {"text": "complete"}


def _chat_graph() -> Any:
    graph = StateGraph(ChatState)
    graph.add_node("stream", _stream)
    graph.add_edge(START, "stream")
    graph.add_edge("stream", END)
    return graph


class App:
    """The graphs, compiled on one checkpointer, and the jobs under way."""

    saver: AsyncSqliteSaver
    steps: Any
    chat: Any
    jobs: dict[str, asyncio.Task[None]]

    async def open(self, connection: aiosqlite.Connection) -> None:
        self.saver = AsyncSqliteSaver(connection)
        await self.saver.setup()
        self.steps = _steps_graph().compile(checkpointer=self.saver)
        self.chat = _chat_graph().compile(checkpointer=self.saver)
        self.jobs = {}
        threads = {c.config["configurable"]["thread_id"] async for c in self.saver.alist(None)}
        for thread in threads:
            # .tasks, for .next leaves out a node whose results are stored without their checkpoint.
            if thread.startswith("job-") and (await self.steps.aget_state(_config(thread))).tasks:
                self.start(thread, None)

    def start(self, thread: str, state: dict[str, Any] | None) -> None:
        self.jobs[thread] = asyncio.create_task(self._run(thread, state))

    async def _run(self, thread: str, state: dict[str, Any] | None) -> None:
        await self.steps.ainvoke(state, _config(thread), durability=DURABILITY)


held = App()


def _config(thread: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread}, "recursion_limit": 100}


async def steps(_: Request) -> Response:
    state = {"job": 0, "step_ms": 0, "results": []}
    done = await held.steps.ainvoke(state, _config(str(uuid4())), durability=DURABILITY)
    return JSONResponse(work.answer(done["results"]))


async def tokens(asked: dict[str, Any]) -> AsyncIterator[str]:
    state = {"tokens": asked["tokens"], "pace_ms": asked["pace_ms"], "text": ""}
    config = _config(str(uuid4()))
    stream = held.chat.astream(state, config, stream_mode="custom", durability=DURABILITY)
    async for token in stream:
        yield token


async def chat(request: Request) -> Response:
    return EventSourceResponse(tokens(await request.json()))


async def start_job(request: Request) -> Response:
    asked = await request.json()
    job = asked["job"]
    held.start(f"job-{job}", {"job": job, "step_ms": asked["step_ms"], "results": []})
    return Response(status_code=202, headers={"location": f"/jobs/{job}"})


async def job_response(request: Request) -> Response:
    thread = f"job-{request.path_params['job']}"
    state = await held.steps.aget_state(_config(thread))
    if not state.values:
        task = held.jobs.get(thread)
        return Response(status_code=404 if task is None or task.done() else 202)
    if state.tasks or len(state.values["results"]) < STEPS:
        return Response(status_code=202)
    return JSONResponse(work.answer(state.values["results"]))


async def ready(_: Request) -> Response:
    return PlainTextResponse("ready")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with aiosqlite.connect(f"{os.environ['BENCH_DIR']}/langgraph.sqlite") as connection:
        await held.open(connection)
        yield


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/steps", steps, methods=["POST"]),
        Route("/chat", chat, methods=["POST"]),
        Route("/jobs", start_job, methods=["POST"]),
        Route("/jobs/{job:int}/response", job_response),
    ],
    lifespan=lifespan,
)
