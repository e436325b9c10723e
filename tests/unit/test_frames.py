from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints import frames
from durable_endpoints.errors import Corrupt
from durable_endpoints.records import Entry, Kind

entries = st.builds(
    Entry,
    seq=st.just(0),
    kind=st.sampled_from(Kind),
    key=st.text(max_size=40),
    check=st.integers(0, 2**32 - 1),
    at_ms=st.integers(0, 2**53),
    took_us=st.integers(0, 2**32 - 1),
    args=st.binary(max_size=40),
    payload=st.binary(max_size=200),
)


def pack(items: list[Entry]) -> bytes:
    return frames.pack(
        frames.pack_entry(e.kind, e.key.encode(), e.check, e.at_ms, e.took_us, e.args, e.payload)
        for e in items
    )


@given(st.lists(entries, max_size=20), st.integers(0, 10_000))
def test_what_is_packed_is_unpacked(items: list[Entry], first_seq: int) -> None:
    back = frames.unpack(pack(items), first_seq)
    assert back == [e._replace(seq=first_seq + i) for i, e in enumerate(items)]


@given(st.lists(entries, min_size=1, max_size=5), st.data())
def test_i20_a_flipped_bit_or_a_cut_is_noticed(items: list[Entry], data: st.DataObject) -> None:
    whole = bytearray(pack(items))
    where = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[where] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Corrupt):
        frames.unpack(bytes(flipped), 0)
    with pytest.raises(Corrupt):
        frames.unpack(bytes(whole[:where]), 0)
