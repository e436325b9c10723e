"""Server-sent events on the wire: cutting a body into blocks, adding ids.

The format is WHATWG HTML, section 9.2.6. A block ends with a blank line; lines end with LF, CRLF
or CR. Blocks that are only comments (pings) carry nothing and are never journalled.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from durable_endpoints.errors import PayloadTooLarge
from durable_endpoints.limits import SSE_BLOCK_BYTES_MAX

# Two line ends in a row. A lone CR at the very end may be half of a CRLF: not yet a line end.
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_LINE: Final = re.compile(rb"\r\n|\n|\r")
_OWN_ID: Final = re.compile(rb"(?:^|[\r\n])id(?::|[\r\n])")
_DATA: Final = re.compile(rb"(?:^|[\r\n])data(?::|[\r\n])")
_BOM: Final = b"\xef\xbb\xbf"
HEARTBEAT: Final = b": hb\n"


class Splitter:
    """Cuts a stream of bytes into SSE blocks with data, each with its blank line.

    Every block becomes one event with one id. So what has no data is not let stand alone (stock
    clients break on an id or a retry by itself): its `id` and `retry` lines go before the next
    block, which means the same; comments, stray blank lines and a byte order mark mean nothing.
    """

    __slots__ = ("_begun", "_cut", "_lines", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._lines = b""
        self._begun = False
        self._cut = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the blocks that are complete now.

        Raises: PayloadTooLarge if a block does not end.
        """
        if self._rest:
            data = self._rest + data
        elif data[:1] == b":" and not _without_comments(data):
            return []  # a ping: it comes by the clock, and means nothing
        if not self._begun and len(data) >= len(_BOM):
            self._begun = True
            data = data.removeprefix(_BOM)
        first = _END.search(data)
        if first is not None and first.end() == len(data):  # one whole block: the usual piece
            self._cut, self._rest = True, b""
            block = self._block(data)
            return [block] if block else []
        blocks: list[bytes] = []
        begin = 0
        for match in _END.finditer(data):
            block = self._block(data[begin : match.end()])
            begin = match.end()
            if block:
                blocks.append(block)
        self._cut = self._cut or begin > 0
        self._rest = data[begin:]
        if len(self._rest) > SSE_BLOCK_BYTES_MAX:
            raise PayloadTooLarge("SSE block", len(self._rest), SSE_BLOCK_BYTES_MAX)
        return blocks

    def _block(self, block: bytes) -> bytes:
        if block[:5] != b"data:" and _DATA.search(block := block.lstrip(b"\r\n")) is None:
            kept = [line for line in _LINE.split(block) if line.startswith((b"id:", b"retry:"))]
            self._lines += b"".join(line + b"\n" for line in kept)
            return b""
        if self._lines:
            block, self._lines = self._lines + block, b""
        return block

    def rest(self) -> bytes:
        """Return what is left at the end of the body: a block that was not ended, ended.

        A body without a single block is no SSE: it is returned as it is.
        """
        rest, self._rest = self._rest, b""
        if not self._cut and _DATA.search(rest) is None:
            return rest
        block = self._block(rest)
        return block and block.rstrip(b"\r\n") + b"\n\n"


def _without_comments(block: bytes) -> bytes:
    """Return a block without its leading comment and blank lines."""
    block = block.lstrip(b"\r\n")
    while block[:1] == b":":
        end = _LINE.search(block)
        if end is None:
            return block  # cut on its way: what follows belongs to it
        block = block[end.end() :].lstrip(b"\r\n")
    return block


def with_id(block: bytes, run_id: bytes, offset: int, crc: int) -> bytes:
    """Return a block with our id, unless the app gave it one."""
    if b"id" in block and _OWN_ID.search(block) is not None:
        return block
    return b"id: %b:%d-%08x\n%b" % (run_id, offset, crc, block)


def own_id(block: bytes) -> str | None:
    """Return the id that the app gave a block."""
    for line in _LINE.split(block):
        if line.startswith(b"id:"):
            return line[3:].removeprefix(b" ").decode(errors="replace")
    return None


def control(event: str, data: object, event_id: str | None = None) -> bytes:
    """Return the block of a control event."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {event}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def wrap(data: bytes) -> bytes:
    """Return the block that carries a piece of a body that is not SSE."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is None or "\r" in text:
        import base64

        return b"event: durable.bytes\ndata: " + base64.b64encode(data) + b"\n\n"
    return "".join(f"data: {line}\n" for line in text.split("\n")).encode() + b"\n"
