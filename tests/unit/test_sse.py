"""However a body of server-sent events is cut on its way, the same blocks come out."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_endpoints.asgi.sse import Splitter

LINES = ("data: one", "data: two", "id: 3", "retry: 5", "event: word", ": ping", ":data: no", "")
_COMMENT = re.compile(rb"(?m)^:[^\r\n]*(?:\r\n|\n|\r)")

# A body without a single block is no event stream, and comes out as it is.
BODIES = st.builds(
    lambda lines, end: (end.join(["data: zero", "", *lines]) + end + end).encode(),
    st.lists(st.sampled_from(LINES), min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip


def split(*pieces: bytes) -> bytes:
    """Return all blocks, without their comments: what they mean."""
    splitter = Splitter()
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    return _COMMENT.sub(b"", b"".join([*blocks, splitter.rest()]))


@given(BODIES, st.lists(st.integers(0, 120), max_size=6))
@settings(max_examples=400, deadline=None)
def test_cuts_change_nothing(body: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[a:b] for a, b in pairwise(places)]
    assert split(*pieces) == split(body)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"data: a\n\n", b"data: b\n\n"),
        (b"data: a", b"\n\n", b"data: b\n\n"),
        (b"data: a\n\nda", b"ta: b\n\n"),
        (b"data: a\n\ndata: b\n\n",),
        (b"\xef\xbb\xbfdata: a\n\n", b": ping\n\n", b"data: b\n\n"),
        (b"data: a\n\n", b":", b"data: no\n\n", b"data: b\n\n"),
    ],
)
def test_two_blocks_are_two(pieces: tuple[bytes, ...]) -> None:
    splitter = Splitter()
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    assert blocks == [b"data: a\n\n", b"data: b\n\n"]
    assert splitter.rest() == b""
