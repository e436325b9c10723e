"""Answers that are too large for one read of the store: a run of `n` pieces of `kib` KiB each.

`STORE` is where; `STALL_S`, how long a reader may take nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from durable_endpoints import DurableMiddleware, durable
from durable_endpoints.asgi import tail

if "STALL_S" in os.environ:  # half a minute otherwise
    tail.SEND_STALL_S = float(os.environ["STALL_S"])  # type: ignore[misc]
app = FastAPI()


@app.post("/bulk")
@durable
async def bulk(n: int, kib: int) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for number in range(n):
            yield f"{number} {os.urandom(kib * 512).hex()}\n".encode()
            await asyncio.sleep(0.002)  # so that they do not share a frame

    return StreamingResponse(body(), media_type="text/plain")


app.add_middleware(DurableMiddleware, store=os.environ["STORE"])
