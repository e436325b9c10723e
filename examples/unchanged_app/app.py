"""Somebody else's app: it streams a shipping report. It knows nothing of durability.

uvicorn app:app
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from zlib import crc32

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PORTS = ("Aden", "Bergen", "Cork", "Dakar", "Esbjerg", "Fremantle", "Galle", "Havana")
DELAY_S = float(os.environ.get("REPORT_DELAY_S", "0.2"))


def ships(port: str, day: int) -> int:
    return crc32(f"{port}{day}".encode()) % 40


async def report(request: Request) -> Response:
    days = int(request.query_params.get("days", "5"))

    async def lines() -> AsyncIterator[str]:
        for day in range(days):
            for port in PORTS:
                await asyncio.sleep(DELAY_S)
                row = {"day": day, "port": port, "ships": ships(port, day)}
                yield f"data: {json.dumps(row)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def ports(_: Request) -> Response:
    return JSONResponse(list(PORTS))


app = Starlette(routes=[Route("/report", report), Route("/ports", ports)])
