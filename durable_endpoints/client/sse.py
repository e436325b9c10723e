"""Decoding of event streams as the HTML standard says: pure, one chunk at a time."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from durable_endpoints.client.answers import ResponseError
from durable_endpoints.limits import SSE_BLOCK_BYTES_MAX

# Headroom over the server's own bound for one event: its id, its data prefixes, later versions.
BLOCK_CHARS_MAX: Final = 4 * SSE_BLOCK_BYTES_MAX

_LINE_END: Final = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched block of an event stream; `id` is None where the block itself has none."""

    event: str
    data: str
    id: str | None


class SSEDecoder:
    """Decodes an event stream, whatever its chunks and line ends.

    Besides the messages it tells `comments`, how many comment lines came (heartbeats are), and
    `retry_ms`, the last valid `retry:`.
    """

    def __init__(self) -> None:
        self.comments = 0
        self.retry_ms: int | None = None
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = True
        self._after_cr = False
        self._line: list[str] = []
        self._line_size = 0
        self._block_size = 0
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that `chunk` completes. Raises ResponseError on an endless block."""
        text = self._text.decode(chunk)
        if not text:
            return
        if self._first:
            text, self._first = text.removeprefix("\ufeff"), False
        if self._after_cr:  # its line ended with the chunk before: this is the same line end
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        start = 0
        for end in _LINE_END.finditer(text):
            self._line.append(text[start : end.start()])
            line, start = "".join(self._line), end.end()
            self._line, self._line_size = [], 0
            if (message := self._take(line)) is not None:
                yield message
        self._line.append(text[start:])
        self._line_size += len(text) - start
        self._check_size()

    def _check_size(self) -> None:
        if self._block_size + self._line_size > BLOCK_CHARS_MAX:
            raise ResponseError(200, "", f"an event exceeds {BLOCK_CHARS_MAX:,} characters")

    def _take(self, line: str) -> Message | None:
        if not line:
            data, event, ident = self._data, self._event, self._id
            self._data, self._event, self._id, self._block_size = [], "", None, 0
            return Message(event or "message", "\n".join(data), ident) if data else None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
            return None
        self._block_size += len(line)
        self._check_size()
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value[:9])
        return None
