"""A model's server that takes no time: OpenAI's wire format, the same tokens for everybody.

`python -m bench.apps.model`: prints its port, ends when its standard input does. A POST to
`/<tokens>/<microseconds>/chat/completions` is answered with so many tokens, each due so long after
the one before; 0: all in one write. The times are due times: a busy moment is caught up with.
"""

from __future__ import annotations

import asyncio
import json
import sys

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"x-request-id: req_1\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return _chunk(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.partition(b":")[2]))
            _, count, pace_us, *_ = head.split(b" ")[1].split(b"/")
            events = [_event({"content": f"token{n} "}) for n in range(int(count))]
            last = _event({}, "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            writer.write(_HEAD)
            if not int(pace_us):
                writer.write(b"".join(events) + last)
                continue
            due_s = loop.time()
            for event in events:
                due_s += int(pace_us) / 1e6
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                writer.write(event)
            writer.write(last)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
