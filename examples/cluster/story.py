"""The app of the cluster: a story that several nodes tell, one after the other if need be.

Each word says which node found it. Kill that node, and another one goes on with the next word.

    DURABLE_STORE=postgresql://user:password@host/database uvicorn story:app
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.sse import EventSourceResponse

from durable_endpoints import DurableMiddleware, durable, step

NODE = os.environ.get("NODE", socket.gethostname())
WORD_S = float(os.environ.get("WORD_S", "0.15"))
TEXT = """
The lighthouse had three keepers and one lamp. Whoever was awake turned it, and wrote down every
turn in the book by the stairs, before the beam had left the glass. One night the storm took the
first keeper off the gallery in the middle of a sweep. The second woke, read the last line, and
put a hand to the wheel where it had stopped. Out at sea nobody saw more than a slow blink. They
never knew that there were three of them, and that was the whole art: the light was not in the
keeper, it was in the book.
"""
WORDS = TEXT.split()

app = FastAPI(title="A story, told by several nodes")
# The one line that makes it durable, and one node of many.
app.add_middleware(DurableMiddleware, store=os.environ["DURABLE_STORE"])

Word = dict[str, str]


@step(on_interrupt="resume")
async def tell(words: int, *, recorded: Sequence[Word] = ()) -> AsyncIterator[Word]:
    """Find the words from where the recorded ones end."""
    for number in range(len(recorded), words):
        await asyncio.sleep(WORD_S)
        yield {"word": WORDS[number % len(WORDS)], "node": NODE}


@app.post("/story", response_class=EventSourceResponse)
@durable
async def story(words: Annotated[int, Query(ge=1, le=2000)] = len(WORDS)) -> AsyncIterator[Word]:
    async for word in tell(words):
        yield word
