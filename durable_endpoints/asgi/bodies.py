"""What the control routes are sent."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request

from durable_endpoints.asgi.problems import Problem
from durable_endpoints.limits import SIGNAL_BYTES_MAX


async def body_of(request: Request) -> bytes:
    """Return a body that is no larger than a signal may be.

    Raises: Problem 413.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > SIGNAL_BYTES_MAX:
            raise Problem(413, "body-too-large", f"send at most {SIGNAL_BYTES_MAX:,} bytes")
    return bytes(body)


async def json_of(request: Request) -> Any:
    """Return the value in a body; None for an empty one.

    Raises: Problem 400, 413.
    """
    body = await body_of(request)
    if not body.strip():
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "malformed-json", f"the body is no JSON: {error}") from error
