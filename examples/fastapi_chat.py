"""A chat with memory on FastAPI: dependencies, steps and a streamed answer in one durable request.

    cd examples
    durable run fastapi_chat:app
    curl -N 127.0.0.1:8000/threads/tea -H 'X-User: ada' --json '{"question": "Why tea?"}'
    curl 127.0.0.1:8000/threads/tea -H 'X-User: ada'

What to notice:
- The request as a whole is the run: after a crash its dependencies are entered again, then the
  handler is replayed; recorded steps return what they returned.
- A `yield` dependency stays open until the run ends, also when the client has long gone.
- `save` may run twice if a crash comes before its result is durable, so it is written to be
  harmless twice: its row has the run's id.

It talks to the model at OPENAI_BASE_URL; without one, the words are scripted.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import aiosqlite
import chatmodel
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field

from durable_endpoints import DurableMiddleware, current_run, durable, step

app = FastAPI(title="A chat with memory")
app.add_middleware(DurableMiddleware, store="sqlite:///fastapi_chat.db")


class Question(BaseModel):
    question: str = Field(max_length=2000)


async def user(x_user: Annotated[str | None, Header()] = None) -> str:
    """An ordinary dependency: who asks."""
    if not x_user:
        raise HTTPException(401, "say who you are with the header X-User")
    return x_user


async def memory() -> AsyncIterator[aiosqlite.Connection]:
    """A dependency with an end: the connection is closed when the run has ended."""
    async with aiosqlite.connect(os.environ.get("CHAT_MEMORY", "chat_memory.db")) as database:
        await database.execute(
            "create table if not exists turns"
            " (run text primary key, user text, thread text, question text, answer text)"
        )
        yield database


User = Annotated[str, Depends(user)]
Memory = Annotated[aiosqlite.Connection, Depends(memory)]


async def load(database: aiosqlite.Connection, who: str, thread: str) -> list[chatmodel.Message]:
    sql = "select question, answer from turns where user = ? and thread = ? order by run"
    rows = await database.execute_fetchall(sql, (who, thread))
    return [
        message
        for question, text in rows
        for message in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": text},
        )
    ]


async def save(
    database: aiosqlite.Connection, who: str, thread: str, question: str, text: str
) -> None:
    row = (current_run().id, who, thread, question, text)
    await database.execute("insert or replace into turns values (?, ?, ?, ?, ?)", row)
    await database.commit()


@step(on_interrupt="resume")
async def answer(
    messages: list[chatmodel.Message], *, recorded: Sequence[str] = ()
) -> AsyncIterator[str]:
    async for token in chatmodel.stream(messages, recorded):
        yield token


@app.post("/threads/{thread}", response_class=EventSourceResponse)
@durable
async def chat(
    thread: str, body: Question, who: User, database: Memory
) -> AsyncIterator[dict[str, str]]:
    past = await step.run("load", load, database, who, thread)
    text = ""
    async for token in answer([*past, {"role": "user", "content": body.question}]):
        text += token
        yield {"text": token}
    await step.run("save", save, database, who, thread, body.question, text)


@app.get("/threads/{thread}")
async def history(thread: str, who: User, database: Memory) -> list[chatmodel.Message]:
    """An ordinary endpoint beside it, which is not durable and does not pay for it."""
    return await load(database, who, thread)
