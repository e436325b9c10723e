"""The bytes of a frame: the entries of one run in one batch.

    frame   crc32 u32 | version u8 | entry, entry, ...
    entry   kind u8 | key length u16 | check u32 | at ms u64 | took us u32
            | args length u32 | payload length u32 | key | args | payload

All integers are little-endian. The checksum covers everything behind it. Seqs are not stored:
a frame's entries are dense from the `first_seq` of its row.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final
from zlib import crc32

from durable_endpoints.errors import Corrupt
from durable_endpoints.records import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSION: Final = 1
_HEAD: Final = struct.Struct("<IB")
_ENTRY: Final = struct.Struct("<BHIQIII")
assert _HEAD.size == 5
assert _ENTRY.size == 27

_pack_entry = _ENTRY.pack
_KINDS: Final = {int(kind): kind for kind in Kind}  # asking the enumeration takes half of a read


def pack_entry(
    kind: int, key: bytes, check: int, at_ms: int, took_us: int, args: bytes, payload: bytes
) -> bytes:
    """Return the bytes of one entry."""
    head = _pack_entry(kind, len(key), check, at_ms, took_us, len(args), len(payload))
    return b"".join((head, key, args, payload))


def pack(parts: Iterable[bytes]) -> bytes:
    """Return a frame of entries that `pack_entry` made."""
    body = b"".join(parts)
    version = bytes((VERSION,))
    return _HEAD.pack(crc32(body, crc32(version)), VERSION) + body


def join(frames: Sequence[bytes]) -> bytes:
    """Return one frame with the entries of several, which are not looked at.

    Raises: Corrupt if a checksum or a version does not fit (I20).
    """
    if len(frames) == 1:
        return frames[0]
    return pack(_body(data) for data in frames)


def _body(data: bytes) -> bytes:
    if len(data) < _HEAD.size:
        raise Corrupt(f"a frame of {len(data)} bytes is shorter than its head")
    checksum, version = _HEAD.unpack_from(data)
    if crc32(memoryview(data)[4:]) != checksum:
        raise Corrupt("a frame's checksum does not match its bytes")
    if version != VERSION:
        raise Corrupt(f"a frame has format {version}; this release reads format {VERSION}")
    return data[_HEAD.size :]


def unpack(data: bytes, first_seq: int) -> list[Entry]:
    """Return the entries of a frame.

    Raises: Corrupt if the checksum, the version or a length does not fit (I20).
    """
    body = _body(data)
    entries: list[Entry] = []
    position, end = 0, len(body)
    size = _ENTRY.size
    while position < end:
        if position + size > end:
            raise Corrupt("a frame ends inside an entry's head")
        kind, key_len, check, at_ms, took_us, args_len, payload_len = _ENTRY.unpack_from(
            body, position
        )
        position += size
        stop = position + key_len + args_len + payload_len
        if stop > end:
            raise Corrupt("an entry is longer than its frame")
        args_at = position + key_len
        payload_at = args_at + args_len
        entries.append(
            Entry(
                first_seq + len(entries),
                _KINDS.get(kind) or Kind(kind),
                body[position:args_at].decode(),
                check,
                at_ms,
                took_us,
                body[args_at:payload_at],
                body[payload_at:stop],
            )
        )
        position = stop
    return entries
