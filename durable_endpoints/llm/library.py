"""httpx and httpx2, whichever is there: all that depends on the one or the other.

They have the same interface and classes of their own; a client takes only its own library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

if TYPE_CHECKING:
    from httpx import AsyncBaseTransport, AsyncByteStream

    BaseTransport: TypeAlias = AsyncBaseTransport
    ByteStream: TypeAlias = AsyncByteStream

LIBRARIES: Final[tuple[ModuleType, ...]] = tuple(
    # A dictionary: httpx2 can be told to be httpx, too.
    dict.fromkeys(import_module(name) for name in ("httpx2", "httpx") if find_spec(name))
)


def _of_all(name: str) -> Any:
    """Return a class that is, for each library there, its class of this name."""
    return type(name, tuple(getattr(library, name) for library in LIBRARIES), {})


if not TYPE_CHECKING:
    BaseTransport = _of_all("AsyncBaseTransport")
    ByteStream = _of_all("AsyncByteStream")


def library_of(request: object) -> Any:
    """Return the library that a request belongs to.

    Raises: TypeError if it belongs to none.
    """
    for library in LIBRARIES:
        if isinstance(request, library.Request):
            return library
    names = " or ".join(library.__name__ for library in LIBRARIES)
    raise TypeError(f"{type(request)} is no request of {names}")


def response_of(
    request: httpx.Request,
    status: int,
    headers: Sequence[tuple[str, str]],
    extensions: dict[str, Any],
    stream: ByteStream,
) -> httpx.Response:
    """Return a response of the request's own library."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    response: httpx.Response = library_of(request).Response(
        status, headers=raw, stream=stream, extensions=extensions
    )
    return response


def content_of(request: httpx.Request) -> bytes | None:
    """Return a request's body; None if it is a stream that can be read only once."""
    try:
        return request.content
    except library_of(request).RequestNotRead:
        return None


def with_header(request: httpx.Request, name: str, value: str) -> httpx.Request:
    """Return the same request, body and all, with one header set."""
    headers = request.headers.copy()
    headers[name] = value
    made: httpx.Request = library_of(request).Request(
        request.method, request.url, headers=headers, stream=request.stream,
        extensions=request.extensions,
    )  # fmt: skip
    return made
