"""OpenAI's background responses: an answer that the provider keeps, and goes on with.

`POST …/responses` with `background` and `stream` begins one; `GET …/responses/{id}` with
`stream=true&starting_after=N` gives its events from N + 1 on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import httpx
import orjson

from durable_endpoints.llm.library import content_of, library_of

_DATA: Final = re.compile(rb"^data: ?(\{.*\})\r?$", re.MULTILINE)
_RETRIEVED: Final = re.compile(r"/responses/([^/]+)$")
_OVER: Final = frozenset(
    {"response.completed", "response.failed", "response.incomplete", "response.cancelled", "error"}
)


class Progress:
    """How far a background response has been read, event by event."""

    def __init__(self, request: httpx.Request) -> None:
        self._request = request
        retrieved = _RETRIEVED.search(request.url.path)
        self._id = retrieved[1] if retrieved else None
        self._last: int | None = None
        self.begun = False
        self.over = False

    def take(self, piece: bytes) -> bool:
        """Take whole events; say whether the response is over with them."""
        self.begun = True
        events = _DATA.findall(piece)
        if self._id is None:
            self._id = _response_id(events)
        for data in reversed(events):
            event: dict[str, Any] = orjson.loads(data)
            if isinstance(event.get("sequence_number"), int):
                self._last = event["sequence_number"]
                self.over = event.get("type") in _OVER
                break
        return self.over

    @property
    def known(self) -> bool:
        """Whether it is known what is to be gone on with, and from where."""
        return self._id is not None and self._last is not None

    def continuation(self) -> httpx.Request:
        """Return the request for what follows; the same request again if nothing was read."""
        request = self._request
        if not self.begun:
            return request
        url = request.url
        path = url.path if request.method == "GET" else f"{url.path}/{self._id}"
        params = url.params.set("stream", "true").set("starting_after", str(self._last))
        headers = [
            (name, value)
            for name, value in request.headers.raw
            if name.lower() not in (b"content-length", b"content-type", b"transfer-encoding")
        ]
        made: httpx.Request = library_of(request).Request(
            "GET", url.copy_with(path=path, params=params), headers=headers,
            extensions=request.extensions,
        )  # fmt: skip
        return made


def is_resumable(request: httpx.Request) -> bool:
    """Say whether the provider can go on with the stream that a request asks for."""
    if request.method == "GET":
        streams = request.url.params.get("stream", "").lower() == "true"
        return streams and _RETRIEVED.search(request.url.path) is not None
    content = content_of(request)
    if request.method != "POST" or not request.url.path.endswith("/responses") or not content:
        return False
    try:
        asked = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(asked, dict) and bool(asked.get("background")) and bool(asked.get("stream"))


def _response_id(events: Sequence[bytes]) -> str | None:
    for data in events:
        response = orjson.loads(data).get("response")
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            return str(response["id"])
    return None
