"""What answers used: counted as they pass, and from the journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_endpoints import NotDurable
from durable_endpoints.llm import Price, Tokens, Usage, current_usage, usage_of
from tests.engine.worlds import world
from tests.llm import test_requests as requests
from tests.llm.conftest import Provider

ASK = requests.ASK


async def some_answers(provider: Provider) -> None:
    client = requests.sdk(provider.url)
    await client.chat.completions.create(model="gpt?n=5", messages=ASK)
    await client.chat.completions.create(model="gpt?n=5&gzip=1", messages=ASK)
    for asked in (True, False):
        stream = await client.chat.completions.create(
            model="gpt?n=5", messages=ASK, stream=True, stream_options={"include_usage": asked}
        )
        async for _ in stream:
            pass
    stream = await client.responses.create(model="gpt?n=5", input="hello", stream=True)
    async for _ in stream:
        pass
    await client.models.list()
    await client.close()
    claude = requests.claude(provider.url)
    async with claude.messages.stream(model="claude?n=4", messages=ASK, max_tokens=9) as messages:
        await messages.get_final_message()
    await claude.messages.create(model="claude?n=4", messages=ASK, max_tokens=9)
    await claude.close()


def check(usage: Usage) -> None:
    assert usage.models == {
        "gpt": Tokens(4, 4 * 7, 4 * 2, 4 * 5, 4 * 1),
        "claude": Tokens(2, 2 * (7 + 2), 2 * 2, 2 * 4, 0),
    }
    assert usage.unknown == 1
    assert usage.total == Tokens(6, 46, 12, 28, 4)
    prices = {"gpt": Price(1.0, 10.0, 0.1), "cl*": Price(2.0, 20.0), "c*": Price(9.0, 9.0)}
    assert usage.cost(prices) == pytest.approx(
        ((28 - 8) * 1 + 8 * 0.1 + 20 * 10 + 18 * 2 + 8 * 20) / 1e6
    )


def test_usage_live_replayed_and_from_the_journal(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            seen: list[Any] = []
            gate = asyncio.Event()

            async def body() -> None:
                await some_answers(provider)
                seen.append(current_usage())
                await gate.wait()

            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: len(seen) == 1)
            await one.engine.log.flush()
            await one.crash()
            gate.set()
            await one.boot()
            await one.ended_for_good(started.id)
            live, replayed = seen
            check(live.spent)
            check(replayed.saved)
            assert live.saved == replayed.spent == Usage()
            check(usage_of(await one.entries(started.id)))

    asyncio.run(main())
    assert len(provider.counted()) == 8


def test_an_answer_asked_for_again_counts_once(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client, got = requests.sdk(provider.url), []

            async def body() -> None:
                stream = await client.chat.completions.create(
                    model="gpt?n=60&pace=20", messages=ASK, stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip
                async for chunk in stream:
                    got.append(chunk)
                    if len(got) == 4:  # the first process comes no further
                        await asyncio.Event().wait()

            requests._BODY[:] = [body]
            started = await one.start(requests.play_body)
            await requests.until(lambda: len(got) > 3)
            await one.engine.log.flush()
            await one.crash()
            await one.boot()
            await one.ended_for_good(started.id)
            usage = usage_of(await one.entries(started.id))
            assert usage.models == {"gpt": Tokens(1, 7, 2, 60, 1)}
            assert usage.unknown == 1
            await client.close()

    asyncio.run(main())
    assert len(provider.counted()) == 2


def test_there_is_no_usage_outside_a_run() -> None:
    with pytest.raises(NotDurable, match="@durable"):
        current_usage()
