"""What an HTTP answer means to the client, and what it raises for it."""

from __future__ import annotations

import email.utils
import json
from typing import Any, Final

import httpx

from durable_endpoints.errors import DurableError, RunNotFound
from durable_endpoints.limits import KIB

# What a proxy or a draining server says while nobody is at home. An answer with a run id is the
# handler's own, whatever its status.
_NOBODY_HOME: Final = frozenset({502, 503, 504})
_LOST_HISTORY: Final = ("history-diverged", "cursor-ahead", "rewound")
_REFUSAL_BYTES_MAX: Final = 64 * KIB


class ResponseError(DurableError):
    """The server refused, or its answer is not a durable run's.

    Attributes: `status` (HTTP; 0 where the client itself found the fault), `problem` (the type
    of the problem document, or ""), `detail`.
    """

    def __init__(self, status: int, problem: str, detail: str) -> None:
        super().__init__(status, problem, detail)
        self.status = status
        self.problem = problem
        self.detail = detail

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.detail}" if self.status else self.detail


class HistoryDiverged(ResponseError):
    """The server's log is not the one that this client has read: what was shown is unreliable.

    The server finds it out by the cursor (status 409), the client by a hole (status 0).
    """


class ConnectionLost(DurableError):
    """No sign of life from the server for the client's whole `patience_s`."""


def run_id_of(response: httpx.Response) -> str | None:
    """Return the id of the run that the response belongs to; None if it belongs to none."""
    run_id: str | None = response.headers.get("durable-run-id")
    return run_id


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the body is an event stream."""
    kind, _, _ = response.headers.get("content-type", "").partition(";")
    return bool(kind.strip().lower() == "text/event-stream")


def nobody_home(response: httpx.Response) -> bool:
    """Whether the answer says no more than that the request may be sent again."""
    return response.status_code in _NOBODY_HOME and run_id_of(response) is None


def retry_after_s(response: httpx.Response, now_ms: int) -> float:
    """Return the wait that `Retry-After` asks for, in seconds; 0 if it is absent or unreadable."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, at.timestamp() - now_ms / 1000)


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises ResponseError if there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ResponseError(0, "", f"expected a JSON object, got {text[:200]!r}")
    return found


async def refusal(response: httpx.Response) -> DurableError:
    """Read and close an answer that is not what was asked for; return what to raise for it."""
    body = b""
    if response.status_code >= 300:
        body = await _beginning(response)
    else:  # a stream, perhaps, and one without an end
        await response.aclose()
    problem, detail = "", f"{response.request.method} {response.request.url.path}: "
    kind = response.headers.get("content-type", "")
    told = _problem(body) if kind.startswith("application/problem+json") else None
    if told is not None:
        problem = str(told.get("type", ""))
        detail += str(told.get("detail") or told.get("title") or problem)
    elif response.status_code < 300:
        detail += "no durable run answered; mark the endpoint @durable, or list it in routes="
    else:
        detail += body.decode(errors="replace")[:1000] or response.reason_phrase
    if response.status_code in {404, 410} and "/runs/" in response.request.url.path:
        return RunNotFound(detail)
    if response.status_code == 409 and problem.endswith(_LOST_HISTORY):
        return HistoryDiverged(409, problem, detail)
    return ResponseError(response.status_code, problem, detail)


def _problem(body: bytes) -> dict[str, Any] | None:
    try:
        return json_object(body)
    except ResponseError:
        return None  # cut short, or mislabelled: its text is told instead


async def _beginning(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= _REFUSAL_BYTES_MAX:
                break
    except httpx.TransportError as error:  # the status counts, its explanation broke off
        body += f" ({error!r})".encode()
    finally:
        await response.aclose()
    return bytes(body)
