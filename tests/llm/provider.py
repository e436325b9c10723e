"""A model provider for tests: OpenAI's and Anthropic's wire formats, over real HTTP.

`python -m uvicorn tests.llm.provider:app`. What it answers is told by the name of the model:
`m?n=20&pace=2` is 20 words, 2 ms apart. Further: `fail=429` (or another status) for the first
`times` requests of the same `key`, with `after` as their Retry-After; `cut=5`: the connection
breaks after 5 words (a background response's before event 5); `forget=1`: that response is not
found any more then; `stall=5`: nothing comes after 5 words; `say`: the text instead of words;
`gzip=1`, or `gzip=again` from the second time on; `redirect=1`; `wait=50`: ms before the head;
`pad=N`: N bytes more in a JSON answer; `linger=500`: ms that a stream stays open behind its last
event; `half=1`: a background response is cut in the middle of an event.

It counts: GET /counted has every request and what became of it, DELETE /counted forgets.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

SEEN: list[dict[str, Any]] = []
TIMES: Counter[str] = Counter()
BACKGROUND: dict[str, Background] = {}


def word(number: int) -> str:
    return f"w{number} "


class Asked:
    """A request, and what its model's name says of the answer."""

    def __init__(self, request: Request, body: dict[str, Any]) -> None:
        name, _, query = str(body.get("model", "")).partition("?")
        told = dict(parse_qsl(query))
        self.name, self.body = name, body
        self.request = request
        self.text = told.get("say")
        self.words = [word(i) for i in range(int(told.get("n", "3")))]
        if self.text is not None:
            self.words = [part + " " for part in self.text.split(" ")]
            self.words[-1] = self.words[-1][:-1]
        self.pace_s = float(told.get("pace", "0")) / 1000
        self.wait_s = float(told.get("wait", "0")) / 1000
        self.cut = int(told.get("cut", "-1"))
        self.stall = int(told.get("stall", "-1"))
        again = bool(TIMES[told.get("key", query)])
        self.gzip = told.get("gzip") == "1" or (told.get("gzip") == "again" and again)
        self.linger_s = float(told.get("linger", "0")) / 1000
        self.half = told.get("half") == "1"
        self.pad = int(told.get("pad", "0"))
        self.redirect = told.get("redirect") == "1"
        self.fail = int(told.get("fail", "0"))
        self.after = told.get("after")
        self.forget = told.get("forget") == "1"
        self.times = int(told.get("times", "1000000"))
        self.key = told.get("key", query)
        self.entry: dict[str, Any] = {
            "path": request.url.path, "method": request.method, "query": request.url.query,
            "model": body.get("model"), "words": 0, "end": None,
            "headers": dict(request.headers), "at": time.time(),
        }  # fmt: skip
        SEEN.append(self.entry)

    @property
    def usage(self) -> tuple[int, int]:
        return 7, len(self.words)

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the words as they are due."""
        self.entry["end"] = "flowing"
        try:
            for number, text in enumerate(self.words):
                if number == self.cut:
                    self.entry["end"] = "cut"
                    raise ConnectionResetError("as asked")
                if number == self.stall:
                    await asyncio.sleep(3600)
                if self.pace_s:
                    await asyncio.sleep(self.pace_s)
                self.entry["words"] = number + 1
                yield text
        except (asyncio.CancelledError, GeneratorExit):
            self.entry["end"] = "closed"  # by who asked
            raise
        self.entry["end"] = "whole"

    async def refusal(self, shape: str) -> Response | None:
        """Return the answer that is none, if one is due."""
        if self.wait_s:
            await asyncio.sleep(self.wait_s)
        if self.redirect and "again" not in self.request.query_params:
            self.entry["end"] = "redirected"
            return RedirectResponse(f"{self.request.url.path}?again=1", 307)
        TIMES[self.key] += 1
        if not self.fail or TIMES[self.key] > self.times:
            return None
        self.entry["end"] = f"refused {self.fail}"
        headers = {"x-request-id": "req_1", "set-cookie": "session=secret"}
        if self.after is not None:
            headers["retry-after"] = self.after
        if shape == "anthropic":
            kind = {429: "rate_limit_error", 400: "invalid_request_error"}.get(
                self.fail, "api_error"
            )
            error = {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "r"}
            return JSONResponse(error, self.fail, headers)
        error = {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}
        return JSONResponse(error, self.fail, headers)

    def json(self, value: dict[str, Any]) -> Response:
        if self.pad:
            value["padding"] = "x" * self.pad
        data = json.dumps(value).encode()
        headers = {"x-request-id": "req_1", "set-cookie": "session=secret", "x-echo": "yes"}
        if self.gzip:
            data, headers["content-encoding"] = gzip.compress(data), "gzip"
        self.entry["end"] = "whole"
        if self.pace_s:
            return StreamingResponse(
                dripping(data, self.pace_s), 200, headers, "application/json"
            )  # fmt: skip
        return Response(data, 200, headers, "application/json")

    def stream(self, events: AsyncIterator[bytes]) -> Response:
        headers = {"x-request-id": "req_1", "set-cookie": "session=secret"}
        accepted = self.request.headers.get("accept-encoding", "")
        if self.gzip and "gzip" in accepted:
            events, headers["content-encoding"] = compressed(events), "gzip"
        if self.linger_s:
            events = lingering(events, self.linger_s)
        return StreamingResponse(events, 200, headers, "text/event-stream")


async def compressed(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    squeeze = zlib.compressobj(wbits=31)
    async for made in events:
        yield squeeze.compress(made) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    yield squeeze.flush()


async def lingering(events: AsyncIterator[bytes], linger_s: float) -> AsyncIterator[bytes]:
    async for made in events:
        yield made
    await asyncio.sleep(linger_s)


async def dripping(body: bytes, pace_s: float) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 200_000):
        yield body[at : at + 200_000]
        await asyncio.sleep(pace_s)


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def event(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + data(value)


# --- OpenAI, chat completions


async def chat(request: Request) -> Response:
    asked = Asked(request, await request.json())
    if (refusal := await asked.refusal("openai")) is not None:
        return refusal
    if asked.body.get("stream"):
        return asked.stream(chat_events(asked))
    message: dict[str, Any] = {
        "role": "assistant", "content": "".join(asked.words), "refusal": None, "annotations": [],
    }  # fmt: skip
    call = wanted_call(asked.body)
    if call is not None:
        message |= {"content": None, "tool_calls": [chat_call(call)]}
    finish = "tool_calls" if call else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked.name}
    return asked.json({**head, "choices": [choice], "usage": chat_usage(asked)})


def chat_call(call: tuple[str, str, str]) -> dict[str, Any]:
    call_id, name, arguments = call
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_usage(asked: Asked) -> dict[str, Any]:
    given, made = asked.usage
    return {
        "prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip


async def chat_events(asked: Asked) -> AsyncIterator[bytes]:
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": asked.name,
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return data({**head, "choices": [choice], "usage": None})

    yield chunk({"role": "assistant", "content": ""})
    call = wanted_call(asked.body)
    if call is not None:
        opened = chat_call(call) | {"index": 0}
        opened["function"] = {"name": call[1], "arguments": ""}
        yield chunk({"tool_calls": [opened]})
        for at in range(0, len(call[2]), 5):
            part = {"index": 0, "function": {"arguments": call[2][at : at + 5]}}
            yield chunk({"tool_calls": [part]})
        asked.entry["end"] = "whole"
    else:
        async for text in asked.pieces():
            yield chunk({"content": text})
    yield chunk({}, "tool_calls" if call else "stop")
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        yield data({**head, "choices": [], "usage": chat_usage(asked)})
    yield b"data: [DONE]\n\n"


def wanted_call(body: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return the next call of a tool: each tool once, in order, then the answer."""
    tools = body.get("tools") or []
    items = body.get("messages") or body.get("input") or []
    done = 0
    for item in items if isinstance(items, list) else []:
        if item.get("role") == "tool" or item.get("type") == "function_call_output":
            done += 1
        content = item.get("content")
        if item.get("role") == "user" and isinstance(content, list):
            done += sum(part.get("type") == "tool_result" for part in content)
    if done >= len(tools):
        return None
    tool = tools[done].get("function") or tools[done]
    schema = tool.get("parameters") or tool.get("input_schema") or {}
    made = {"string": "x", "integer": 3, "number": 1.5, "boolean": True, "array": ["x"]}
    properties = schema.get("properties") or {}
    arguments = {key: made.get(value.get("type"), "x") for key, value in properties.items()}
    return f"call_{done}", str(tool["name"]), json.dumps(arguments)


# --- Anthropic, messages


async def messages(request: Request) -> Response:
    asked = Asked(request, await request.json())
    if (refusal := await asked.refusal("anthropic")) is not None:
        return refusal
    head: dict[str, Any] = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": asked.name,
        "stop_sequence": None,
    }  # fmt: skip
    given, made = asked.usage
    if asked.body.get("stream"):
        usage = {"input_tokens": given, "output_tokens": 1, "cache_read_input_tokens": 2}
        opening = {**head, "content": [], "stop_reason": None, "usage": usage}
        return asked.stream(message_events(asked, opening))
    call = wanted_call(asked.body)
    content: dict[str, Any] = {"type": "text", "text": "".join(asked.words)}
    if call is not None:
        content = {
            "type": "tool_use", "id": call[0], "name": call[1], "input": json.loads(call[2])
        }  # fmt: skip
    usage = {"input_tokens": given, "output_tokens": made, "cache_read_input_tokens": 2}
    reason = "tool_use" if call else "end_turn"
    return asked.json({**head, "content": [content], "stop_reason": reason, "usage": usage})


async def message_events(asked: Asked, opening: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"type": "message_start", "message": opening})
    call = wanted_call(asked.body)
    block: dict[str, Any] = {"type": "text", "text": ""}
    if call is not None:
        block = {"type": "tool_use", "id": call[0], "name": call[1], "input": {}}
    yield event({"type": "content_block_start", "index": 0, "content_block": block})
    yield event({"type": "ping"})
    if call is not None:
        delta = {"type": "input_json_delta", "partial_json": call[2]}
        yield event({"type": "content_block_delta", "index": 0, "delta": delta})
        asked.entry["end"] = "whole"
    else:
        async for text in asked.pieces():
            delta = {"type": "text_delta", "text": text}
            yield event({"type": "content_block_delta", "index": 0, "delta": delta})
    yield event({"type": "content_block_stop", "index": 0})
    reason = "tool_use" if call else "end_turn"
    yield event(
        {
            "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": asked.usage[1]},
        }
    )  # fmt: skip
    yield event({"type": "message_stop"})


# --- OpenAI, responses


class Background:
    """A response that is made whether somebody listens or not."""

    def __init__(self, asked: Asked, response_id: str) -> None:
        self.id = response_id
        self.asked = asked
        self.events: list[dict[str, Any]] = []
        self.grown = asyncio.Condition()
        self.done = False
        self.status = "in_progress"
        self.task = asyncio.create_task(self.make())

    async def make(self) -> None:
        async for made in response_events(self.asked, self.id):
            async with self.grown:
                self.events.append(made)
                self.grown.notify_all()
        async with self.grown:
            self.done, self.status = True, "completed"
            self.grown.notify_all()

    async def follow(self, after: int, breaks: int = -1) -> AsyncIterator[bytes]:
        at = after + 1
        while True:
            async with self.grown:
                while len(self.events) <= at and not self.done:
                    await self.grown.wait()
                ready = self.events[at:]
            for made in ready:
                if made["sequence_number"] == breaks:
                    if self.asked.half:
                        yield event(made)[:40]
                        await asyncio.sleep(0.02)
                    if self.asked.forget:
                        del BACKGROUND[self.id]
                    raise ConnectionResetError("as asked")
                yield event(made)
                at += 1
            if self.done and at >= len(self.events):
                return


def response_object(
    asked: Asked, response_id: str, status: str, output: list[Any]
) -> dict[str, Any]:
    given, made = asked.usage
    usage = {
        "input_tokens": given, "output_tokens": made, "total_tokens": given + made,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip
    return {
        "id": response_id, "object": "response", "created_at": 1, "model": asked.name,
        "status": status, "output": output, "error": None, "incomplete_details": None,
        "instructions": None, "metadata": {}, "parallel_tool_calls": True, "temperature": 1.0,
        "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "background": bool(asked.body.get("background")),
        "usage": usage if status == "completed" else None,
    }  # fmt: skip


def output_message(text: str, status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = [part] if status == "completed" else []
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": content,
    }  # fmt: skip


def output_call(call: tuple[str, str, str], status: str = "completed") -> dict[str, Any]:
    return {
        "id": f"fc_{call[0]}", "type": "function_call", "call_id": call[0], "name": call[1],
        "arguments": call[2] if status == "completed" else "", "status": status,
    }  # fmt: skip


async def response_events(asked: Asked, response_id: str) -> AsyncIterator[dict[str, Any]]:
    number = -1

    def made(kind: str, **fields: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **fields}

    opened = response_object(asked, response_id, "in_progress", [])
    yield made("response.created", response=opened)
    yield made("response.in_progress", response=opened)
    call = wanted_call(asked.body)
    if call is not None:
        item = output_call(call, "in_progress")
        place = {"item_id": item["id"], "output_index": 0}
        yield made("response.output_item.added", output_index=0, item=item)
        yield made("response.function_call_arguments.delta", **place, delta=call[2])
        yield made(
            "response.function_call_arguments.done", **place, name=call[1], arguments=call[2]
        )
        done: dict[str, Any] = output_call(call)
        asked.entry["end"] = "whole"
    else:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield made(
            "response.output_item.added", output_index=0, item=output_message("", "in_progress")
        )
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield made("response.content_part.added", **place, part=empty)
        async for text in asked.pieces():
            yield made("response.output_text.delta", **place, delta=text, logprobs=[])
        whole = "".join(asked.words)
        yield made("response.output_text.done", **place, text=whole, logprobs=[])
        yield made("response.content_part.done", **place, part={**empty, "text": whole})
        done = output_message(whole)
    yield made("response.output_item.done", output_index=0, item=done)
    finished = response_object(asked, response_id, "completed", [done])
    yield made("response.completed", response=finished)


async def responses(request: Request) -> Response:
    asked = Asked(request, await request.json())
    if (refusal := await asked.refusal("openai")) is not None:
        return refusal
    response_id = f"resp_{len(SEEN)}"
    if asked.body.get("background"):
        asked.cut, breaks = -1, asked.cut
        background = BACKGROUND[response_id] = Background(asked, response_id)
        if asked.body.get("stream"):
            return asked.stream(background.follow(-1, breaks))
        return asked.json(response_object(asked, response_id, "queued", []))
    if asked.body.get("stream"):

        async def events() -> AsyncIterator[bytes]:
            async for made in response_events(asked, response_id):
                yield event(made)

        return asked.stream(events())
    call = wanted_call(asked.body)
    output = output_call(call) if call else output_message("".join(asked.words))
    return asked.json(response_object(asked, response_id, "completed", [output]))


async def retrieve(request: Request) -> Response:
    background = BACKGROUND.get(request.path_params["id"])
    entry = {
        "path": request.url.path, "method": "GET", "query": request.url.query, "end": "whole",
        "model": None, "words": 0, "headers": dict(request.headers), "at": time.time(),
    }  # fmt: skip
    SEEN.append(entry)
    if background is None:
        error = {
            "message": "not found",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        return JSONResponse({"error": error}, 404)
    if request.query_params.get("stream") == "true":
        after = int(request.query_params.get("starting_after", "-1"))
        return background.asked.stream(background.follow(after))
    output = [output_message("".join(background.asked.words))] if background.done else []
    return JSONResponse(response_object(background.asked, background.id, background.status, output))


# --- others


async def models(request: Request) -> Response:
    asked = Asked(request, {"model": request.query_params.get("model", "m")})
    if (refusal := await asked.refusal("openai")) is not None:
        return refusal
    return asked.json({"object": "list", "data": [{"id": "m", "object": "model", "created": 1,
                                                   "owned_by": "o"}]})  # fmt: skip


async def orders(request: Request) -> Response:
    asked = Asked(request, {"model": request.query_params.get("model", "m")})
    if (refusal := await asked.refusal("openai")) is not None:
        return refusal
    return asked.json({"order": request.headers.get("idempotency-key"), "n": len(SEEN)})


async def counted(request: Request) -> Response:
    if request.method == "DELETE":
        SEEN.clear()
        TIMES.clear()
    return JSONResponse(SEEN)


async def health(_: Request) -> Response:
    return Response("ok")


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/responses/{id}", retrieve),
        Route("/v1/models", models),
        Route("/orders", orders, methods=["POST"]),
        Route("/counted", counted, methods=["GET", "DELETE"]),
        Route("/health", health),
    ]
)
