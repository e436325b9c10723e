"""Text as it may be shown: nothing in it acts, nothing in it is invisible.

Everything a run holds comes from a model, a client or a stranger. HTML is escaped by the
templates; here terminal sequences are dropped, and characters that no eye can see (controls,
direction overrides, zero-width ones) become `⟨U+202E⟩`, so that text reads as what it is.
"""

from __future__ import annotations

import re
from typing import Final

import orjson
from markupsafe import Markup

SHOWN_CHARS_MAX: Final = 64 * 1024
# Indenting what is larger would cost more than it tells.
_PRETTY_BYTES_MAX: Final = 512 * 1024

_TERMINAL: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # device strings
    r"|\x1b[ -/]*[0-~]"
)
# The joiners U+200C and U+200D stay: scripts and emoji need them.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def inert(text: str) -> str:
    """Return text without terminal sequences, its unseen characters spelled out."""
    if text.isascii() and text.isprintable():
        return text
    text = _TERMINAL.sub("", text.replace("\r\n", "\n"))
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def finalize(value: object) -> object:
    """Make every value that a template shows inert; the template then escapes it."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return inert(value) if isinstance(value, str) else value


def shown(data: bytes, limit: int = SHOWN_CHARS_MAX) -> str:
    """Return bytes as text for people: JSON indented, cut at `limit` characters."""
    text = None
    if data[:1] in (b"{", b"[") and len(data) <= _PRETTY_BYTES_MAX:
        try:
            text = orjson.dumps(orjson.loads(data), option=orjson.OPT_INDENT_2).decode()
        except orjson.JSONDecodeError:
            text = None
    if text is None:
        text = data[: 4 * limit].decode(errors="replace")
    return text if len(text) <= limit else text[:limit] + "…"


def line(data: bytes, limit: int = 160) -> str:
    """Return the beginning of some bytes on one line."""
    text = data[: 4 * limit].decode(errors="replace").replace("\n", " ").strip()
    return text if len(text) <= limit else text[:limit] + "…"
