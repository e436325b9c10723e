"""Who may look, who may act, and whether a form comes from our own page."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import HTTPConnection, Request

from durable_endpoints.limits import KIB

Role: TypeAlias = Literal["viewer", "operator"]
Answer: TypeAlias = "Role | tuple[Role, str] | None"
AuthHook: TypeAlias = Callable[[HTTPConnection], "Answer | Awaitable[Answer]"]

COOKIE: Final = "durable_console"
FIELD: Final = "token"
FORM_BYTES_MAX: Final = 64 * KIB
_FIELDS_MAX: Final = 50
_TOKEN_BYTES: Final = 24
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who was let in. A viewer reads; an operator also acts."""

    role: Role
    name: str

    @property
    def may_act(self) -> bool:
        """Whether actions are for this visitor."""
        return self.role == "operator"


class Refused(Exception):
    """A request that gets an error page."""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(status, title, text)
        self.status = status
        self.title = title
        self.text = text


async def ask(hook: AuthHook, connection: HTTPConnection) -> Visitor:
    """Return whom the app's own hook lets in.

    Raises: Refused if nobody; ValueError if the hook answers something else than it may.
    """
    answer = hook(connection)
    found = await answer if inspect.isawaitable(answer) else answer
    if found is None:
        raise Refused(401, "Sign in first", "The app did not recognise you as a viewer.")
    role, name = (found, found) if isinstance(found, str) else found
    if role not in ("viewer", "operator"):
        raise ValueError(f'console_auth returned {role!r}: return "viewer", "operator" or None')
    return Visitor(role, name)


def check_host(connection: HTTPConnection) -> None:
    """Refuse a page that reached this machine under a foreign name (DNS rebinding).

    Raises: Refused.
    """
    host = connection.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in _LOOPBACK_NAMES:
        raise Refused(403, "Not under this name", f"Open the console at localhost, not at {host}.")


def token_of(connection: HTTPConnection) -> tuple[str, bool]:
    """Return the token of this browser, and whether it is new and must be set."""
    known = connection.cookies.get(COOKIE, "")
    if len(known) >= _TOKEN_BYTES and known.isascii():
        return known, False
    return secrets.token_urlsafe(_TOKEN_BYTES), True


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our own pages has sent.

    Raises: Refused for anything that another site can make a browser send.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise _foreign("it was sent from another site")
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != request.headers.get("host"):
        raise _foreign(
            f"its origin is {origin or 'not said'}; a proxy must pass the Host header on"
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise _foreign("it is not a form")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES_MAX:
            raise Refused(413, "Too large", f"A form has at most {FORM_BYTES_MAX:,} bytes.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise Refused(400, "Not a form", "The form's bytes cannot be read.") from None
    fields = dict(pairs)
    known = request.cookies.get(COOKIE, "")
    if not known or not compare_digest(known.encode(), fields.pop(FIELD, "").encode()):
        raise _foreign("its token does not fit; load the page again")
    return fields


def _foreign(reason: str) -> Refused:
    return Refused(
        403, "Not from this console", f"Nothing was done. The form was refused: {reason}."
    )
