"""Signed links that expire: what lets a person answer a waiting run without an account.

Signed in the manner of Standard Webhooks: HMAC-SHA256 over "id.timestamp.payload", one signature
for each secret, so that secrets can be changed while links are on their way. Pure but for
`new_secret`.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_bytes
from typing import Final

from durable_endpoints.errors import DurableError
from durable_endpoints.limits import LINK_CHARS_MAX, LINK_SECRETS_MAX, NAME_CHARS_MAX

_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = range(24, 64 + 1)  # Standard Webhooks, "signature scheme"
_NEW_SECRET_BYTES: Final = 32
# With the same secret a webhook may be signed: its signature must not pass for a link's.
_DOMAIN: Final = b"link_"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]{43})+")
_CONTENT: Final = re.compile(r"([^.]+)\.([1-9][0-9]{0,15})\.(.+)", re.DOTALL)
_EXPIRES_S_END: Final = 10**16


class BadLink(DurableError):
    """A link's token is no token, or was not signed with any of the secrets."""


class ExpiredLink(DurableError):
    """A link's time is over; it was signed properly."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a verified link is good for: answering `wait` of a run until `expires_s`."""

    run_id: str
    wait: str
    expires_s: int


def sign(secrets: Sequence[bytes], run_id: str, wait: str, expires_s: int) -> str:
    """Return the token of a link: letters, digits, `-`, `_` and `.` only.

    `secrets`: 1 to 4; the token holds a signature of each, and any one is enough to verify it.
    `wait`: the name of the wait, 1 to 200 characters. `expires_s`: seconds since 1970 UTC; from
    then on the link is void.

    Raises: ValueError for what cannot be signed.
    """
    _check_secrets(secrets)
    if not run_id or "." in run_id:
        raise ValueError(f"run_id={run_id!r}: give the id of a run")
    if not 0 < len(wait) <= NAME_CHARS_MAX:
        raise ValueError(f"a wait's name has 1 to {NAME_CHARS_MAX} characters: {wait!r}")
    if not 0 < expires_s < _EXPIRES_S_END:
        raise ValueError(f"expires_s={expires_s!r}: give whole seconds since 1970 UTC")
    content = f"{run_id}.{expires_s:d}.{wait}".encode()
    token = ".".join([_encode(content), *(_signature(secret, content) for secret in secrets)])
    if len(token) > LINK_CHARS_MAX:
        raise ValueError(f"a link's token has at most {LINK_CHARS_MAX} characters")
    return token


def verify(secrets: Sequence[bytes], token: str, now_s: float) -> Link:
    """Return what a token is good for at `now_s`, in seconds since 1970 UTC.

    Raises: BadLink unless one of `secrets` signed it; ExpiredLink from its expiry on;
    ValueError without secrets.
    """
    _check_secrets(secrets)
    if len(token) > LINK_CHARS_MAX or not _TOKEN.fullmatch(token):
        raise BadLink("this is no link of ours")
    encoded, *signatures = token.split(".")
    try:
        content = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        text = content.decode()
    except ValueError:
        raise BadLink("this is no link of ours") from None
    expected = [_signature(secret, content) for secret in secrets]
    signed = [hmac.compare_digest(a, b) for a in expected for b in signatures]
    # Base64 leaves bits over at the end: only one way of writing the content is ours.
    parts = _CONTENT.fullmatch(text)
    if not any(signed) or parts is None or _encode(content) != encoded:
        raise BadLink("this link was not signed with any of the secrets in use")
    link = Link(parts[1], parts[3], int(parts[2]))
    if now_s >= link.expires_s:
        raise ExpiredLink("this link has expired; ask for a new one")
    return link


def parse_secret(text: str) -> bytes:
    """Return the bytes of a secret written as `whsec_<base64>`, 24 to 64 bytes.

    Raises: ValueError if it is none; its message does not show the secret.
    """
    try:
        secret = b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(_PREFIX) or len(secret) not in _SECRET_BYTES:
        raise ValueError(
            f"a secret is written {_PREFIX}<base64 of {_SECRET_BYTES.start} to "
            f"{_SECRET_BYTES.stop - 1} bytes>; make one with durable_endpoints.links.new_secret()"
        )
    return secret


def new_secret() -> str:
    """Return a new random secret, for `parse_secret`."""
    return _PREFIX + b64encode(token_bytes(_NEW_SECRET_BYTES)).decode()


def _check_secrets(secrets: Sequence[bytes]) -> None:
    if not 0 < len(secrets) <= LINK_SECRETS_MAX:
        raise ValueError(f"links need 1 to {LINK_SECRETS_MAX} secrets, the newest first")
    if any(len(secret) not in _SECRET_BYTES for secret in secrets):
        raise ValueError(
            f"a secret has {_SECRET_BYTES.start} to {_SECRET_BYTES.stop - 1} bytes; "
            "read it with parse_secret"
        )


def _signature(secret: bytes, content: bytes) -> str:
    return _encode(hmac.digest(secret, _DOMAIN + content, "sha256"))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
