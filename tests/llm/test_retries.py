"""The runtime's attempts are all the requests that go out, whichever library asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from durable_endpoints import RateLimit, Retry
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider
from tests.llm.threeways import Kit
from tests.support.server import TCPProxy

ASK: Any = [{"role": "user", "content": "say something"}]
Ask = Callable[[Kit, str], Awaitable[Any]]


def own(model: str) -> dict[str, Any]:
    """The libraries as they are: two retries of their own; impatient where nobody answers."""
    return {"max_retries": 2, "timeout": 0.25 if "wait=" in model else 30}


async def chat(kit: Kit, model: str) -> Any:
    client = kit.openai(**own(model))
    return await client.chat.completions.create(model=model, messages=ASK)


async def chat_stream(kit: Kit, model: str) -> Any:
    client = kit.openai(**own(model))
    stream = await client.chat.completions.create(model=model, messages=ASK, stream=True)
    return [chunk async for chunk in stream]


async def responses(kit: Kit, model: str) -> Any:
    return await kit.openai(**own(model)).responses.create(model=model, input="hello")


async def responses_stream(kit: Kit, model: str) -> Any:
    async with kit.openai(**own(model)).responses.stream(model=model, input="hello") as stream:
        return await stream.get_final_response()


async def messages(kit: Kit, model: str) -> Any:
    client = kit.anthropic(**own(model))
    return await client.messages.create(model=model, messages=ASK, max_tokens=9)


async def messages_stream(kit: Kit, model: str) -> Any:
    client = kit.anthropic(**own(model))
    async with client.messages.stream(model=model, messages=ASK, max_tokens=9) as stream:
        return await stream.get_final_message()


CALLS: list[Ask] = [chat, chat_stream, responses, responses_stream, messages, messages_stream]
FAILURES = {
    "m?fail=429&after=0.05": "RateLimitError",
    "m?fail=500": "InternalServerError",
    "m?fail=529": ("InternalServerError", "OverloadedError"),
    "m?wait=9000": "APITimeoutError",
    "m?fail=400": "BadRequestError",
}


@pytest.mark.parametrize("model", FAILURES)
@pytest.mark.parametrize("call", CALLS, ids=[call.__name__ for call in CALLS])
def test_as_many_requests_as_attempts(call: Ask, model: str, provider: Provider) -> None:
    async def main() -> None:
        for attempts in (1, 3):
            provider.forget()
            retry = Retry(attempts=attempts, initial=0.01, jitter=0)
            limit = RateLimit(f"{call.__name__} {model} {attempts}", limit=1000)
            kit = Kit(
                provider.url, httpx2, bare=False, retry=retry, rate_limit=limit,
                llm_hosts=["127.0.0.1:*"],
            )  # fmt: skip

            async def body(kit: Kit = kit) -> str:
                try:
                    await call(kit, model)
                except Exception as error:
                    return type(error).__name__
                raise AssertionError("no error")

            async with world() as one:
                found, _ = await requests.run(one, body)
            await kit.close()
            assert found in FAILURES[model]
            seen = provider.counted()
            assert len(seen) == (1 if "400" in model else attempts)
            assert {entry["headers"]["x-stainless-retry-count"] for entry in seen} == {"0"}
            if "after" in model:
                at = [entry["at"] for entry in seen]
                assert all(b - a >= 0.05 for a, b in pairwise(at))

    asyncio.run(main())


@pytest.mark.parametrize("call", CALLS, ids=[call.__name__ for call in CALLS])
def test_as_many_connections_as_attempts(call: Ask, provider: Provider) -> None:
    async def main() -> None:
        async with world() as one, TCPProxy(provider.port) as proxy:
            proxy.refusing = True
            retry = Retry(attempts=4, initial=0.01, jitter=0)
            kit = Kit(
                proxy.url, httpx2, bare=False, retry=retry,
                llm_hosts=["127.0.0.1:*"],
            )  # fmt: skip

            async def body() -> str:
                try:
                    await call(kit, "m")
                except Exception as error:
                    return type(error).__name__
                raise AssertionError("no error")

            found, _ = await requests.run(one, body)
            assert found == "APIConnectionError"
            assert proxy.connections == 4
            await kit.close()

    asyncio.run(main())


@pytest.mark.parametrize("call", CALLS, ids=[call.__name__ for call in CALLS])
def test_a_refusal_that_passes(call: Ask, provider: Provider) -> None:
    """`Retry-After` of one library's call holds back the others of the same limit."""

    async def main() -> None:
        limit = RateLimit(f"passing {call.__name__}", limit=1000)
        kit = Kit(
            provider.url, httpx2, bare=False, rate_limit=limit,
            llm_hosts=["127.0.0.1:*"],
        )  # fmt: skip

        async with world() as one:

            async def body() -> None:
                async def later() -> None:
                    await requests.refused(one)
                    await chat(kit, "m?key=later")

                await asyncio.gather(call(kit, "m?fail=429&times=1&after=0.4"), later())

            await requests.run(one, body)
        await kit.close()
        seen = provider.counted()
        assert len(seen) == 3
        assert all(entry["at"] - seen[0]["at"] >= 0.38 for entry in seen[1:])

    asyncio.run(main())
