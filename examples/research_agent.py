"""An agent in four kinds of steps: plan, search side by side, read, then a streamed answer.

    cd examples
    durable run research_agent:app
    curl -N 127.0.0.1:8000/research --json '{"question": "How do I compress files?"}'

Its library is real and needs no network: the documentation of Python's standard library. Each
search is a step, so a crash after the third search pays for three searches, not for six; the
answer is a stream step, which goes on in mid-sentence. `durable show last` draws the steps.

It talks to the model at OPENAI_BASE_URL; without one, the words are scripted.
"""

from __future__ import annotations

import asyncio
import json
import re
import sysconfig
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path

import chatmodel
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_endpoints import DurableMiddleware, durable, emit, step

Note = dict[str, str]

DOCSTRING = re.compile(
    r"(?:\s|#[^\n]*\n)*r?(?P<quote>\"\"\"|''')(?P<text>.*?)(?P=quote)", re.DOTALL
)


@cache
def library() -> dict[str, str]:
    """The docstring at the top of every module of the standard library, by the module's name."""
    found = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        if (match := DOCSTRING.match(path.read_text(errors="replace"))) is not None:
            found[path.stem] = " ".join(match["text"].split())
    return found


def hits(topic: str) -> list[str]:
    """Names of the modules that speak of a topic, those that speak of little else first."""
    shares = {name: text.lower().count(topic) / len(text) for name, text in library().items()}
    return sorted((name for name in shares if shares[name]), key=lambda name: -shares[name])


@step
async def plan(question: str) -> list[str]:
    """Choose what to look for: the question's words, then the model's ideas; rare ones first."""
    ask = f"Name three topics to look up, separated by commas, for: {question}"
    ideas = await chatmodel.ask([{"role": "user", "content": ask}])
    words = set(re.findall(r"[a-z]{4,}", f"{question} {ideas}".lower()))
    rarity = {word: len(await asyncio.to_thread(hits, word)) for word in sorted(words)}
    found = [word for word in rarity if rarity[word]]
    return sorted(found, key=lambda word: (word not in question.lower(), rarity[word]))[:5]


@step
async def search(topic: str) -> list[Note]:
    """Look one topic up. Reading two hundred files blocks, so it happens in a thread."""
    found = await asyncio.to_thread(hits, topic)
    return [{"module": name, "says": library()[name][:160]} for name in found[:2]]


@step(on_interrupt="resume")
async def answer(
    question: str, notes: list[Note], *, recorded: Sequence[str] = ()
) -> AsyncIterator[str]:
    known = "\n".join(f"- {note['module']}: {note['says']}" for note in notes[:6])
    ask = f"Answer from these notes on Python modules.\n{known}\n\nQuestion: {question}"
    async for token in chatmodel.stream([{"role": "user", "content": ask}], recorded):
        yield token


@durable
async def research(request: Request) -> Response:
    question = (await request.json())["question"]

    async def events() -> AsyncIterator[dict[str, str]]:
        topics = await plan(question)
        yield {"event": "plan", "data": json.dumps(topics)}
        found = await asyncio.gather(*(search(topic) for topic in topics))
        notes = list({note["module"]: note for some in found for note in some}.values())
        emit({"modules": [note["module"] for note in notes]}, event="notes")
        async for token in answer(question, notes):
            yield {"data": token}

    return EventSourceResponse(events())


app = Starlette(
    routes=[Route("/research", research, methods=["POST"])],
    middleware=[Middleware(DurableMiddleware, store="sqlite:///research_agent.db")],
)
