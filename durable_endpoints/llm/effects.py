"""Requests that change something: effects, recorded whole, with a key that stays the same."""

from __future__ import annotations

from typing import Any, Final

import httpx

from durable_endpoints.engine.attempts import KEY, run_attempts
from durable_endpoints.engine.scope import Scope
from durable_endpoints.engine.steps import StepSpec
from durable_endpoints.errors import PayloadTooLarge
from durable_endpoints.limits import RESULT_BYTES_MAX
from durable_endpoints.llm.answers import (
    Answer,
    AnswerCodec,
    answer_of,
    arguments_of,
    extensions_of,
    name_of,
    secret_headers,
)
from durable_endpoints.llm.body import Body, once
from durable_endpoints.llm.exchange import Send
from durable_endpoints.llm.library import response_of, with_header
from durable_endpoints.llm.policy import Policy
from durable_endpoints.llm.upstream import pieces_of

IDEMPOTENCY_KEY: Final = "idempotency-key"


async def respond(
    scope: Scope, request: httpx.Request, send: Send, policy: Policy
) -> httpx.Response:
    """Make a request as an effect, or return its recorded response.

    The request has the header `Idempotency-Key`, unless the caller has set one.

    Raises: PayloadTooLarge for an answer above 1 MiB; what `send` raises.
    """
    name = name_of(request)
    spec = StepSpec(name, AnswerCodec(name), effect=True, on_ambiguous=policy.on_ambiguous)
    live: list[httpx.Response] = []

    async def act(*_: Any) -> Answer:
        key = KEY.get()
        assert key is not None, "an effect has a key"
        keyed = request
        if IDEMPOTENCY_KEY not in request.headers:
            keyed = with_header(request, IDEMPOTENCY_KEY, key)
        response = await send(keyed)
        live[:] = [response]
        return await _whole(name, response)

    call, arguments = scope.next_call(), arguments_of(request)
    answer: Answer = await run_attempts(scope, call, spec, act, arguments, {})
    headers, extensions = answer.headers, extensions_of(answer)
    if live:
        headers += secret_headers(live[0])
        extensions = live[0].extensions
    assert answer.body is not None
    body = Body(once(answer.body), _nothing)
    return response_of(request, answer.status, headers, extensions, body)


async def _whole(name: str, response: httpx.Response) -> Answer:
    begun, size = [], 0
    try:
        async for piece in pieces_of(response):
            begun.append(piece)
            size += len(piece)
            if size > RESULT_BYTES_MAX:
                raise PayloadTooLarge(name, size, RESULT_BYTES_MAX)
    finally:
        await response.aclose()
    return answer_of(response, b"".join(begun))


async def _nothing() -> None:
    pass
