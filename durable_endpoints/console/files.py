"""The console's own files: styles, scripts and their licence; no others."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from starlette.responses import PlainTextResponse, Response

_HERE: Final = Path(__file__).parent / "static"
_KINDS: Final = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "htmx.js": "text/javascript; charset=utf-8",
    "htmx.LICENSE": "text/plain; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Served as one: htmx begins in the turn after it was loaded, and would not wait for its extension.
_JOINED: Final = {"htmx.js": ("htmx.min.js", "hx-sse.min.js")}
# Addresses carry the hash of the content, so a copy is good for ever.
_KEPT: Final = "public, max-age=31536000, immutable"


@cache
def content(name: str) -> bytes:
    """Return one file."""
    return b"\n".join((_HERE / part).read_bytes() for part in _JOINED.get(name, (name,)))


@cache
def address(name: str) -> str:
    """Return a file's address below the prefix, with the hash of its content."""
    return f"/console/static/{name}?{hashlib.sha256(content(name)).hexdigest()[:12]}"


def serve(name: str) -> Response:
    """Answer with a file."""
    kind = _KINDS.get(name)
    if kind is None:
        return PlainTextResponse("There is no such file.\n", 404)
    return Response(content(name), 200, {"cache-control": _KEPT}, kind)
