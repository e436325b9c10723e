"""OpenAI's background responses: an answer that breaks off goes on where it was."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from durable_endpoints.llm.resume import Progress, is_resumable
from durable_endpoints.llm.upstream import Ending
from tests.engine.worlds import world
from tests.llm.conftest import Provider
from tests.llm.test_requests import run, sdk

WORDS = "".join(f"w{n} " for n in range(9))


async def text_of(stream: Any) -> str:
    found, numbers = "", []
    async for event in stream:
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            found += event.delta
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return found


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_cut_answer_goes_on(cut: int, half: int, provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                stream = await client.responses.create(
                    model=f"m?n=9&pace=1&cut={cut}&half={half}",
                    input="x",
                    background=True,
                    stream=True,
                )
                return await text_of(stream)

            found, _ = await run(one, body)
            assert found == WORDS
            await client.close()

    asyncio.run(main())
    seen = provider.counted()
    assert [entry["method"] for entry in seen] == ["POST", "GET"]
    assert seen[1]["query"] == f"stream=true&starting_after={cut - 1}"
    assert seen[1]["headers"]["authorization"] == "Bearer sk-secret"


def test_an_answer_that_is_cut_before_it_began_is_not_paid_for_again(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                stream = await client.responses.create(
                    model="m?n=9&cut=0", input="x", background=True, stream=True
                )
                with pytest.raises(openai.APIConnectionError):
                    await text_of(stream)

            await run(one, body)
            await client.close()

    asyncio.run(main())
    assert len(provider.counted()) == 1


def test_a_retrieved_answer_goes_on(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                begun = await client.responses.create(
                    model="m?n=9&pace=1", input="x", background=True
                )
                while (await client.responses.retrieve(begun.id)).status != "completed":
                    await asyncio.sleep(0.01)
                stream = await client.responses.retrieve(begun.id, stream=True, starting_after=5)
                return await text_of(stream)

            found, _ = await run(one, body)
            assert found == WORDS[6:]
            await client.close()

    asyncio.run(main())


def test_an_answer_that_the_provider_has_forgotten(provider: Provider) -> None:
    async def main() -> None:
        async with world() as one:
            client = sdk(provider.url)

            async def body() -> Any:
                stream = await client.responses.create(
                    model="m?n=9&pace=1&cut=6&forget=1", input="x", background=True, stream=True
                )
                try:
                    await text_of(stream)
                except openai.APIConnectionError as error:
                    return str(error.__cause__)

            found, _ = await run(one, body)
            assert "was answered with 404" in found
            assert "not found" in found
            await client.close()

    asyncio.run(main())
    assert len(provider.counted()) == 2


def request(method: str, url: str, **options: Any) -> Any:
    return httpx2.Request(method, url, **options)


def test_which_answers_can_go_on() -> None:
    url = "https://api.openai.com/v1/responses"
    assert is_resumable(request("POST", url, json={"background": True, "stream": True}))
    assert not is_resumable(request("POST", url, json={"background": True}))
    assert not is_resumable(request("POST", url, json={"stream": True}))
    assert not is_resumable(request("POST", url, content=b"["))
    assert not is_resumable(request("POST", url + "/x", json={"background": 1, "stream": 1}))
    assert is_resumable(request("GET", url + "/resp_1?stream=true"))
    assert not is_resumable(request("GET", url + "/resp_1"))
    assert not is_resumable(request("GET", url + "?stream=true"))


def test_the_request_for_the_rest() -> None:
    first = request(
        "POST", "https://x.azure.com/openai/responses?api-version=1",
        json={"background": True, "stream": True}, headers={"api-key": "k"},
    )  # fmt: skip
    progress = Progress(first)
    assert not progress.begun and progress.continuation() is first
    progress.take(
        b'event: response.created\ndata: {"response":{"id":"r1"},"sequence_number":0}\n\n'
    )
    progress.take(b'data: {"type":"x","sequence_number":1}\n\ndata: {"sequence_number":2}\n\n')
    made = progress.continuation()
    assert str(made.url) == (
        "https://x.azure.com/openai/responses/r1?api-version=1&stream=true&starting_after=2"
    )
    assert made.headers["api-key"] == "k" and "content-length" not in made.headers
    progress.take(b'data: {"type":"response.completed","sequence_number":3}\n\n')
    assert progress.over


def test_what_says_nothing_of_itself_cannot_go_on() -> None:
    progress = Progress(request("POST", "https://x/responses", json={"background": True}))
    progress.take(b"data: hello\n\n")
    assert not progress.known


@pytest.mark.parametrize(
    ("pieces", "at"),
    [
        ([b"data: 1\n\n", b"data: [DONE]\n\n"], 1),
        ([b"data: 1\n\ndata: [DO", b"NE]\n", b"\n"], 2),
        ([b"data: [DONE]\r\n\r\n"], 0),
        ([b'event: message_stop\ndata: {"type":"message_stop"}\n\n'], 0),
        ([b'event: message_stop\ndata: {"type"', b': "message_stop" }\n\n'], 1),
        ([b"data: x[DONE]\n\n", b'data: {"a":"data: [DONE]"}\n\n', b"data: [DONE]"], None),
    ],
)
def test_the_last_event_is_known(pieces: list[bytes], at: int | None) -> None:
    ending = Ending()
    found = [index for index, piece in enumerate(pieces) if ending.reached(piece)]
    assert found == ([] if at is None else [at])
