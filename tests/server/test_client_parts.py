"""The pure parts of the client: decoding event streams as the HTML standard says, `Retry-After`."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.client import Message, ResponseError, SSEDecoder
from durable_endpoints.client.answers import retry_after_s
from durable_endpoints.client.sse import BLOCK_CHARS_MAX


def decode(*chunks: bytes) -> list[Message]:
    decoder = SSEDecoder()
    return [message for chunk in chunks for message in decoder.feed(chunk)]


CASES = {
    "one line": (b"data: a\n\n", [("message", "a", None)]),
    "several lines": (b"data: a\ndata:b\ndata\n\n", [("message", "a\nb\n", None)]),
    "one space goes": (b"data:  a\n\n", [("message", " a", None)]),
    "no data, no event": (b"event: x\nid: 1\n\n", []),
    "empty data is data": (b"data\n\ndata:\n\n", [("message", "", None)] * 2),
    "type and id": (b"id: 7\nevent: x\ndata: a\n\n", [("x", "a", "7")]),
    "type and id end with their block": (
        b"id: 7\nevent: x\ndata: a\n\ndata: b\n\n",
        [("x", "a", "7"), ("message", "b", None)],
    ),
    "an id with a null is no id": (b"id: 7\0\ndata: a\n\n", [("message", "a", None)]),
    "comments and strangers": (b": hb\nfoo: 1\n data: no\ndata: a\n\n", [("message", "a", None)]),
    "carriage returns": (b"data: a\rdata: b\r\rdata: c\r\r", [("message", "a\nb", None),
                                                              ("message", "c", None)]),
    "both": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("message", "a", None), ("message", "b", None)]),
    "a mark at the beginning": (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", None)]),
    "a mark elsewhere": ("data: \ufeff\n\n".encode(), [("message", "\ufeff", None)]),
    "only these line ends": (
        "data: a\u2028b\x0bc\x85d\n\n".encode(),
        [("message", "a\u2028b\x0bc\x85d", None)],
    ),
    "bytes that are no UTF-8": (b"data: \xff\n\n", [("message", "\ufffd", None)]),
    "an unfinished block": (b"data: a\n\ndata: b\n", [("message", "a", None)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_standard(name: str) -> None:
    stream, expected = CASES[name]
    assert decode(stream) == [Message(*one) for one in expected]


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 60)), st.booleans())
def test_chunks_do_not_matter(name: str, cuts: list[int], crlf: bool) -> None:
    stream, expected = CASES[name]
    if crlf and b"\r" not in stream:
        stream = stream.replace(b"\n", b"\r\n")
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    assert decode(*chunks) == [Message(*one) for one in expected]


def test_an_event_is_dispatched_at_a_carriage_return_without_waiting_for_more() -> None:
    decoder = SSEDecoder()
    assert list(decoder.feed(b"data: a\r\n\r")) == [Message("message", "a", None)]
    assert list(decoder.feed(b"\n")) == []
    assert list(decoder.feed(b"data: b\n\n")) == [Message("message", "b", None)]


def test_heartbeats_and_the_servers_wait_are_told() -> None:
    decoder = SSEDecoder()
    assert list(decoder.feed(b": hb\nretry: 1500\n: hb\nretry: soon\nretry:\n")) == []
    assert (decoder.comments, decoder.retry_ms) == (2, 1500)


def test_an_endless_event_is_refused_and_endless_heartbeats_are_not() -> None:
    decoder = SSEDecoder()
    beat = b": hb\n" * 1000
    for _ in range(BLOCK_CHARS_MAX // len(beat) + 2):
        assert list(decoder.feed(beat)) == []
    with pytest.raises(ResponseError, match="exceeds"):
        for _ in range(BLOCK_CHARS_MAX // 1000 + 2):
            assert list(decoder.feed(b"data: " + b"x" * 1000 + b"\n")) == []
    with pytest.raises(ResponseError, match="exceeds"):
        list(SSEDecoder().feed(b"x" * (BLOCK_CHARS_MAX + 1)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7.0), ("Sat, 21 Nov 2026 00:00:30 GMT", 30.0), ("Fri, 20 Nov 2026 00:00:00 GMT", 0.0),
     ("soon", 0.0), ("-3", 0.0), ("", 0.0)],
)  # fmt: skip
def test_retry_after(value: str, expected: float) -> None:
    now_ms = 1_795_219_200_000  # 2026-11-21 00:00 UTC
    assert retry_after_s(httpx.Response(503, headers={"Retry-After": value}), now_ms) == expected
