"""Server-sent events as a browser reads them (WHATWG HTML, section 9.2.6).

Written for the verifier and sharing no code with what it verifies.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """One event of a stream. `id` is None where the block has none of its own."""

    event: str
    data: str
    id: str | None


class Decoder:
    """Takes bytes as they come and gives the events that are complete."""

    def __init__(self) -> None:
        self.comments = 0
        self.retry_ms: int | None = None
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._after_cr = False
        self._begun = False
        self._event = ""
        self._id: str | None = None
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Block]:
        """Return the events that `data` completes."""
        text = self._text.decode(data)
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        found: list[Block] = []
        for char_run in self._lines(text):
            block = self._line(char_run)
            if block is not None:
                found.append(block)
        return found

    def _lines(self, text: str) -> list[str]:
        """Return the whole lines; a CR ends a line at once, an LF right after it is part of it."""
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        text = self._rest + text
        self._after_cr = text.endswith("\r")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop()
        return lines

    def _line(self, line: str) -> Block | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            self.comments += 1
            return None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Block | None:
        block = None
        if self._data:
            block = Block(self._event or "message", "\n".join(self._data), self._id)
        self._event, self._id, self._data = "", None, []
        return block
