"""What the providers' own libraries do stays the same: bare, in a run, replayed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import Any

import httpx
import httpx2
import pytest
from pydantic import BaseModel

from tests.llm.conftest import Provider
from tests.llm.threeways import Case, Kit, three_ways

ASK: Any = [{"role": "user", "content": "say something"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "look it up",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}


class Answer(BaseModel):
    city: str
    people: int


def described(error: BaseException) -> dict[str, Any]:
    """Return what a caller can see of an error."""
    response = getattr(error, "response", None)
    cause = error.__cause__
    return {
        "class": f"{type(error).__module__}.{type(error).__name__}",
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "body": getattr(error, "body", None),
        "request_id": getattr(error, "request_id", None),
        "request": str(getattr(error, "request", None) and type(error).__name__),
        # What httpx itself has as a cause is its own affair.
        "cause": "httpx" not in type(error).__module__ and cause and type(cause).__name__,
        "text": response is not None and response.text,
        "reason": response is not None and response.reason_phrase,
    }


async def caught(work: Awaitable[Any]) -> dict[str, Any]:
    try:
        await work
    except Exception as error:
        return described(error)
    raise AssertionError("no error")


# --- openai: chat completions


async def chat_stream(kit: Kit) -> Any:
    client = kit.openai()
    stream = await client.chat.completions.create(
        model="m?n=40", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    return [chunk.model_dump(mode="json") async for chunk in stream]


async def chat_paced(kit: Kit) -> Any:
    stream = await kit.openai().chat.completions.create(
        model="m?n=10&pace=3", messages=ASK, stream=True
    )
    return [chunk.choices[0].delta.content async for chunk in stream]


async def chat_whole(kit: Kit) -> Any:
    answer = await kit.openai().chat.completions.create(model="m?n=9", messages=ASK)
    return answer.model_dump(mode="json")


async def chat_compressed(kit: Kit) -> Any:
    answer = await kit.openai().chat.completions.create(model="m?n=9&gzip=1", messages=ASK)
    return answer.model_dump(mode="json")


async def chat_large(kit: Kit) -> Any:
    raw = await kit.openai().chat.completions.with_raw_response.create(
        model="m?pad=3000000", messages=ASK
    )
    return [len(raw.content), hashlib.sha256(raw.content).hexdigest(), raw.parse().id]


async def chat_tools(kit: Kit) -> Any:
    client = kit.openai()
    async with client.chat.completions.stream(model="m", messages=ASK, tools=[TOOL]) as stream:
        found = [event.type async for event in stream]
        final = await stream.get_final_completion()
    return [found, final.model_dump(mode="json")]


async def chat_parsed(kit: Kit) -> Any:
    answer = await kit.openai().chat.completions.parse(
        model='m?say={"city": "Paris", "people": 3}', messages=ASK, response_format=Answer
    )
    parsed = answer.choices[0].message.parsed
    return parsed and parsed.model_dump()


async def chat_closed_early(kit: Kit) -> Any:
    client, found = kit.openai(), []
    async with await client.chat.completions.create(
        model="m?n=400&pace=3", messages=ASK, stream=True
    ) as stream:
        async for chunk in stream:
            found.append(chunk.choices[0].delta.content)
            if len(found) == 4:
                break
    answer = await client.chat.completions.create(model="m?n=2", messages=ASK)
    return [found, answer.choices[0].message.content]


async def chat_abandoned(kit: Kit) -> Any:
    """Leave the loop and close nothing, as handlers do."""
    client, found = kit.openai(), []
    stream = await client.chat.completions.create(model="m?n=400&pace=3", messages=ASK, stream=True)
    async for chunk in stream:
        found.append(chunk.choices[0].delta.content)
        if len(found) == 4:
            break
    answer = await client.chat.completions.create(model="m?n=2", messages=ASK)
    await stream.close()
    return [found, answer.choices[0].message.content]


async def chat_left_open(kit: Kit) -> Any:
    """Leave the loop, and keep the stream as it is."""
    client, found = kit.openai(), []
    kept = await client.chat.completions.create(model="m?n=99&pace=3", messages=ASK, stream=True)
    async for chunk in kept:
        found.append(chunk.choices[0].delta.content)
        if len(found) == 4:
            break
    answer = await client.chat.completions.create(model="m?n=2", messages=ASK)
    found.append(answer.choices[0].message.content)
    kit.kept.append(kept)
    return found


async def chat_given_up(kit: Kit) -> Any:
    """Give a slow answer up, and take another one."""
    client, found = kit.openai(), []
    try:
        async with asyncio.timeout(20) as patience:
            stream = await client.chat.completions.create(
                model="m?n=9&stall=4&pace=1", messages=ASK, stream=True
            )
            async for chunk in stream:
                found.append(chunk.choices[0].delta.content)
                if len(found) == 5:  # nothing comes behind the four words
                    patience.reschedule(asyncio.get_running_loop().time() + 0.1)
    except TimeoutError:
        found.append("too slow")
    answer = await client.chat.completions.create(model="m?n=2", messages=ASK)
    return [*found, answer.choices[0].message.content]


async def chat_by_hand(kit: Kit) -> Any:
    """Read the events without a library, and leave with the last one."""
    found = []
    client = kit.client()
    body = {"model": "m?n=5", "messages": ASK, "stream": True}
    async with client.stream("POST", kit.url + "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            found.append(line)
            if line == "data: [DONE]":
                break
    answer = await client.post(kit.url + "/v1/chat/completions", json={**body, "stream": False})
    return [found, answer.json()["id"]]


async def chat_raw(kit: Kit) -> Any:
    raw = await kit.openai().chat.completions.with_raw_response.create(model="m?n=3", messages=ASK)
    names = ("content-type", "x-request-id", "x-echo")
    response = raw.http_response
    return [
        raw.status_code, [raw.headers.get(name) for name in names], raw.parse().id, raw.text,
        response.http_version, response.reason_phrase, raw.retries_taken, raw.elapsed is not None,
        raw.http_request.method, response.is_closed, response.num_bytes_downloaded,
    ]  # fmt: skip


async def chat_raw_stream(kit: Kit) -> Any:
    raw = await kit.openai().chat.completions.with_raw_response.create(
        model="m?n=3", messages=ASK, stream=True
    )
    return [raw.headers["content-type"], [chunk.id async for chunk in raw.parse()]]


async def chat_streaming_response(kit: Kit) -> Any:
    client = kit.openai()
    create = client.chat.completions.with_streaming_response.create
    async with create(model="m?n=5", messages=ASK, stream=True) as response:
        lines = [line async for line in response.iter_lines()]
    async with create(model="m?n=5", messages=ASK) as response:
        read = await response.json()
    async with create(model="m?n=5", messages=ASK) as response:
        parts = b"".join([part async for part in response.iter_bytes(10)])
    return [lines, read, parts.decode(), response.is_closed]


async def chat_side_by_side(kit: Kit) -> Any:
    client = kit.openai()

    async def one(number: int) -> str:
        stream = await client.chat.completions.create(
            model=f"m?n=8&pace={number + 1}", messages=ASK, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    return await asyncio.gather(*(one(number) for number in range(5)))


async def chat_refused(kit: Kit) -> Any:
    client = kit.openai()
    return [
        await caught(client.chat.completions.create(model=f"m?fail={status}", messages=ASK))
        for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)
    ]


async def chat_refused_stream(kit: Kit) -> Any:
    return await caught(
        kit.openai().chat.completions.create(model="m?fail=400", messages=ASK, stream=True)
    )


async def chat_refused_raw(kit: Kit) -> Any:
    create = kit.openai().chat.completions.with_streaming_response.create

    async def ask() -> None:
        async with create(model="m?fail=404", messages=ASK):
            pass

    return await caught(ask())


async def chat_timeout(kit: Kit) -> Any:
    client = kit.openai(timeout=kit.library.Timeout(20, read=0.3))
    return await caught(client.chat.completions.create(model="m?wait=9000", messages=ASK))


async def _until_error(stream: Any) -> Any:
    found: list[Any] = []
    try:
        async for chunk in stream:
            found.append(chunk.choices[0].delta.content)  # noqa: PERF401 - kept at an error
    except Exception as error:
        return [found, described(error)]
    raise AssertionError("no error")


async def chat_cut(kit: Kit) -> Any:
    return await _until_error(
        await kit.openai().chat.completions.create(
            model="m?n=9&cut=4&pace=1", messages=ASK, stream=True
        )
    )


async def chat_stalled(kit: Kit) -> Any:
    return await _until_error(
        # Between any two of the words that come no machine pauses for so long.
        await kit.openai(timeout=3).chat.completions.create(
            model="m?n=9&stall=4&pace=1", messages=ASK, stream=True
        )
    )


# --- openai: responses, and what is neither


async def responses_stream(kit: Kit) -> Any:
    stream = await kit.openai().responses.create(model="m?n=9", input="hello", stream=True)
    found = [event.model_dump(mode="json") async for event in stream]
    for event in found:
        if "response" in event:
            event["response"]["id"] = "resp"
    return found


async def responses_parsed(kit: Kit) -> Any:
    answer = await kit.openai().responses.parse(
        model='m?say={"city": "Paris", "people": 3}', input="hello", text_format=Answer
    )
    return answer.output_parsed and answer.output_parsed.model_dump()


async def responses_helper(kit: Kit) -> Any:
    async with kit.openai().responses.stream(model="m?n=4", input="hello") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    return [kinds, final.output_text]


async def responses_raw(kit: Kit) -> Any:
    client = kit.openai()
    raw = await client.responses.with_raw_response.create(model="m?n=4", input="hello")
    create = client.responses.with_streaming_response.create
    async with create(model="m?n=4", input="hello", stream=True) as response:
        lines = [line async for line in response.iter_lines()]
    async with create(model="m?n=4", input="hello") as response:
        whole = await response.parse()
    return [raw.status_code, raw.parse().output_text, len(lines), lines[0], whole.output_text]


async def responses_refused(kit: Kit) -> Any:
    client = kit.openai()
    return [
        await caught(client.responses.create(model=f"m?fail={n}", input="hello", stream=stream))
        for n in (400, 401, 404, 429, 500)
        for stream in (False, True)
    ]


async def models_listed(kit: Kit) -> Any:
    return [model.model_dump(mode="json") async for model in kit.openai().models.list()]


async def redirected(kit: Kit) -> Any:
    answer = await kit.client().get(kit.url + "/v1/models", params={"model": "m?redirect=1"})
    return [answer.status_code, answer.json(), len(answer.history), answer.url.path]


async def plain_http(kit: Kit) -> Any:
    client = kit.client()
    head = await client.head(kit.url + "/health")
    missing = await client.get(kit.url + "/nowhere")
    async with client.stream("GET", kit.url + "/v1/models") as response:
        raw = b"".join([part async for part in response.aiter_raw()])
    return [
        head.status_code, dict(head.headers) | {"date": ""}, missing.status_code, missing.text,
        raw.decode(), missing.http_version,
    ]  # fmt: skip


# --- anthropic


async def messages_stream(kit: Kit) -> Any:
    stream = await kit.anthropic().messages.create(
        model="m?n=9", messages=ASK, max_tokens=9, stream=True
    )
    return [event.model_dump(mode="json") async for event in stream]


async def messages_helper(kit: Kit) -> Any:
    async with kit.anthropic().messages.stream(model="m?n=9", messages=ASK, max_tokens=9) as stream:
        found = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    return [found, message.model_dump(mode="json")]


async def messages_whole(kit: Kit) -> Any:
    raw = await kit.anthropic().messages.with_raw_response.create(
        model="m?n=9&gzip=1", messages=ASK, max_tokens=9
    )
    message = await raw.parse()
    return [message.model_dump(mode="json"), raw.headers.get("x-request-id"), raw.status_code]


async def messages_streaming_response(kit: Kit) -> Any:
    client = kit.anthropic()
    create = client.messages.with_streaming_response.create
    async with create(model="m?n=5", messages=ASK, max_tokens=9, stream=True) as response:
        lines = [line async for line in response.iter_lines()]
    async with create(model="m?n=5", messages=ASK, max_tokens=9) as response:
        whole = await response.parse()
    async with create(model="m?n=5", messages=ASK, max_tokens=9) as response:
        parts = b"".join([part async for part in response.iter_bytes(10)])
    return [lines, whole.model_dump(mode="json"), parts.decode(), response.is_closed]


async def messages_parsed(kit: Kit) -> Any:
    answer = await kit.anthropic().messages.parse(
        model='m?say={"city": "Paris", "people": 3}', messages=ASK, max_tokens=9,
        output_format=Answer,
    )  # fmt: skip
    return answer.parsed_output and answer.parsed_output.model_dump()


async def messages_tools(kit: Kit) -> Any:
    tool: Any = {"name": "look_up", "input_schema": TOOL["function"]["parameters"]}
    async with kit.anthropic().messages.stream(
        model="m", messages=ASK, max_tokens=9, tools=[tool]
    ) as stream:
        found = [event.type async for event in stream]
        final = await stream.get_final_message()
    return [found, final.model_dump(mode="json")]


async def messages_refused(kit: Kit) -> Any:
    client = kit.anthropic()
    return [
        await caught(client.messages.create(model=f"m?fail={n}", messages=ASK, max_tokens=9))
        for n in (400, 401, 404, 413, 429, 500, 529)
    ]


async def messages_timeout(kit: Kit) -> Any:
    client = kit.anthropic(timeout=kit.library.Timeout(20, read=0.3))
    return await caught(client.messages.create(model="m?wait=9000", messages=ASK, max_tokens=9))


async def messages_cut(kit: Kit) -> Any:
    found: list[str] = []
    stream = await kit.anthropic().messages.create(
        model="m?n=9&cut=4&pace=1", messages=ASK, max_tokens=9, stream=True
    )
    try:
        async for event in stream:
            found.append(event.type)  # noqa: PERF401 - kept at an error
    except Exception as error:
        return [found, described(error)]
    raise AssertionError("no error")


OPENAI: list[Case] = [
    chat_stream, chat_paced, chat_whole, chat_compressed, chat_large, chat_tools, chat_parsed,
    chat_closed_early, chat_abandoned, chat_left_open, chat_given_up, chat_by_hand, chat_raw,
    chat_raw_stream, chat_streaming_response,
    chat_side_by_side, chat_refused, chat_refused_stream, chat_refused_raw, chat_timeout,
    chat_cut, chat_stalled, responses_stream, responses_parsed, responses_helper,
    responses_raw, responses_refused, models_listed, redirected, plain_http,
]  # fmt: skip
ANTHROPIC: list[Case] = [
    messages_stream, messages_helper, messages_whole, messages_refused, messages_timeout,
    messages_cut, messages_streaming_response, messages_parsed, messages_tools,
]  # fmt: skip
# Of what differs between the two libraries; anthropic takes httpx2 only.
OLDER: list[Case] = [
    chat_stream, chat_compressed, chat_closed_early, chat_by_hand, chat_raw, chat_refused,
    chat_timeout, chat_cut, responses_stream, redirected, plain_http,
]  # fmt: skip
BOTH = [
    *((case, httpx2) for case in (*OPENAI, *ANTHROPIC)),
    *((case, httpx) for case in OLDER),
]


@pytest.mark.parametrize(
    ("case", "library"), BOTH, ids=[f"{case.__name__}-{lib.__name__}" for case, lib in BOTH]
)
def test_what_is_seen_is_the_same(case: Case, library: Any, provider: Provider) -> None:
    bare, live, replayed = asyncio.run(three_ways(case, provider.url, library, retry=None))
    assert live == bare
    assert replayed == live
