"""What is recorded of requests and answers, and what is not: no secrets (I19)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from zlib import crc32

import httpx
import orjson

from durable_endpoints.codec import Codec
from durable_endpoints.limits import NAME_CHARS_MAX
from durable_endpoints.llm.library import content_of
from durable_endpoints.redact import is_secret

# Beyond it a body is compared by its checksum: to read it costs more than it tells.
_READ_BYTES_MAX: Final = 64 * 1024
# Query parameters that sign or authorize an address, beside those whose names say so.
_SIGNING: Final = frozenset({"key", "sig", "signature"})
# As `retry.classify` has it, besides the statuses from 500 on.
_AGAIN_STATUSES: Final = frozenset({408, 425, 429})
# A field of a recorded error has at most 8 KiB of JSON, which may take two bytes for one.
_PIECE_BYTES: Final = 4000
_REFUSAL_BYTES_MAX: Final = 64 * 1024
_HIDDEN: Final = "hidden"
# Hints that libraries make up anew each time, and that change no answer.
_UNCOMPARED: Final = frozenset({"prompt_cache_key"})
BODY_SUFFIX: Final = " body"
ANSWER_MARK: Final = b'{"http":'  # how a recorded answer begins


class Answer(NamedTuple):
    """The head of an answer, and its whole body unless that is a stream step of its own."""

    status: int
    headers: tuple[tuple[str, str], ...]
    version: str
    reason: str
    body: bytes | None


class AnswerCodec(Codec):
    """Answers as a line of JSON with the body's bytes behind it."""

    __slots__ = ()

    def encode(self, value: Answer) -> bytes:
        """See `Codec.encode`."""
        head = {
            "http": value.version, "status": value.status, "headers": value.headers,
            "reason": value.reason, "whole": value.body is not None,
        }  # fmt: skip
        return orjson.dumps(head) + b"\n" + (value.body or b"")

    def decode(self, data: bytes) -> Answer:
        """See `Codec.decode`."""
        line, _, body = data.partition(b"\n")
        head: dict[str, Any] = orjson.loads(line)
        headers = tuple((str(name), str(text)) for name, text in head["headers"])
        whole = body if head["whole"] else None
        return Answer(head["status"], headers, head["http"], head["reason"], whole)

    def record(self, value: Answer) -> tuple[bytes, Answer]:
        """See `Codec.record`."""
        return self.encode(value), value


class BytesCodec(Codec):
    """Bytes as they are."""

    __slots__ = ()

    def encode(self, value: bytes) -> bytes:
        """See `Codec.encode`."""
        return value

    def decode(self, data: bytes) -> bytes:
        """See `Codec.decode`."""
        return data

    def record(self, value: bytes) -> tuple[bytes, bytes]:
        """See `Codec.record`."""
        return value, value


def _compared(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _UNCOMPARED}


class Unanswered(Exception):
    """The provider asked to try again, and no attempt is left; has the answer to give on.

    What it consists of has a JSON form, piece by piece, so that a failed step is recorded with
    all of it.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the provider answered {answer.status} {answer.reason}".rstrip())
        self.status_code = answer.status
        self.headers = dict(answer.headers)
        self.head = AnswerCodec("").encode(answer._replace(body=b"")).decode("latin-1")
        body = answer.body or b""
        self.pieces = -(-len(body) // _PIECE_BYTES)
        for number in range(self.pieces):
            piece = body[number * _PIECE_BYTES : (number + 1) * _PIECE_BYTES]
            setattr(self, f"piece{number}", piece.decode("latin-1"))

    @staticmethod
    def fits(answer: Answer) -> bool:
        """Say whether an answer is one to try again after, and small enough to be kept so."""
        wish = header(answer, "x-should-retry").strip().lower()
        refused = answer.status in _AGAIN_STATUSES or answer.status >= 500
        again = answer.status >= 400 and (wish == "true" or (refused and wish != "false"))
        return again and len(answer.body or b"") <= _REFUSAL_BYTES_MAX

    @property
    def answer(self) -> Answer:
        """The answer as it came."""
        head = AnswerCodec("").decode(self.head.encode("latin-1"))
        pieces = [getattr(self, f"piece{number}") for number in range(self.pieces)]
        return head._replace(body="".join(pieces).encode("latin-1"))


def answer_of(response: httpx.Response, body: bytes | None) -> Answer:
    """Return what is recorded of a response."""
    version = response.extensions.get("http_version", b"HTTP/1.1")
    reason = response.extensions.get("reason_phrase", b"")
    kept, _ = _parted(response.headers.raw)
    return Answer(
        response.status_code, kept, version.decode("ascii", "replace"),
        reason.decode("latin-1"), body,
    )  # fmt: skip


def secret_headers(response: httpx.Response) -> tuple[tuple[str, str], ...]:
    """Return the headers that are not recorded: they are given on once, and never stored."""
    return _parted(response.headers.raw)[1]


def _parted(
    raw: Iterable[tuple[bytes, bytes]],
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    kept: list[tuple[str, str]] = []
    secret: list[tuple[str, str]] = []
    for name, value in raw:
        pair = (name.decode("latin-1"), value.decode("latin-1"))
        (secret if is_secret(pair[0]) else kept).append(pair)
    return tuple(kept), tuple(secret)


def header(answer: Answer, name: str) -> str:
    """Return a header's value, "" if there is none; `name` is in lower case."""
    return next((value for key, value in answer.headers if key.lower() == name), "")


def name_of(request: httpx.Request) -> str:
    """Return a step's name for a request: method, host and path, without the query."""
    url = request.url
    host = url.netloc.decode("ascii", "replace")
    path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
    return f"{request.method} {host}{path}"[: NAME_CHARS_MAX - len(BODY_SUFFIX)]


def arguments_of(request: httpx.Request) -> tuple[Any, ...]:
    """Return what must be the same when the request is made again: address and body."""
    query = [
        (name, _HIDDEN if is_secret(name) or name.lower() in _SIGNING else value)
        for name, value in request.url.params.multi_items()
    ]
    return (str(request.url.copy_with(query=None, userinfo=b"")), query, _body_argument(request))


def _body_argument(request: httpx.Request) -> Any:
    content = content_of(request)
    if content is None or not content:
        return None
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):  # its boundary is made anew each time
        return None
    if len(content) <= _READ_BYTES_MAX:
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError:
            pass  # no JSON: compared by its checksum, too
        else:
            return _compared(body) if isinstance(body, dict) else body
    return {"bytes": len(content), "crc32": f"{crc32(content):08x}"}


def is_plain_events(answer: Answer) -> bool:
    """Say whether a body is an event stream that can be read as it comes."""
    encoding = header(answer, "content-encoding")
    kind = header(answer, "content-type")
    return kind.startswith("text/event-stream") and encoding in ("", "identity")


def extensions_of(answer: Answer) -> dict[str, Any]:
    """Return a recorded response's extensions, as httpx names them."""
    reason = answer.reason.encode("latin-1")
    return {"http_version": answer.version.encode(), "reason_phrase": reason}
