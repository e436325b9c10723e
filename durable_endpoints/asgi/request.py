"""A request as it is journalled, and the ASGI scope that recovery makes of it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

import orjson

from durable_endpoints.asgi.problems import Problem
from durable_endpoints.limits import IDEMPOTENCY_KEY_CHARS_MAX
from durable_endpoints.redact import is_secret

if TYPE_CHECKING:
    from starlette.types import Scope

KIND: Final = "http"


def capture(scope: Scope, *, rewinds: bool, pattern: bool, deadline_ms: int | None = None) -> bytes:
    """Return the JSON of a request without its body and without its secrets (I19)."""
    headers = []
    for name, value in scope["headers"]:
        text = name.decode("latin-1")
        if not is_secret(text):
            headers.append((text, value.decode("latin-1")))
    client, server = scope.get("client"), scope.get("server")
    return orjson.dumps(
        {
            "kind": KIND,
            "method": scope["method"],
            "path": _text(scope["path"]),
            "raw_path": scope.get("raw_path", b"").decode("latin-1"),
            "query": _without_secrets(scope.get("query_string", b"")),
            "root_path": scope.get("root_path", ""),
            "scheme": scope.get("scheme", "http"),
            "http_version": scope.get("http_version", "1.1"),
            "headers": headers,
            "client": list(client) if client else None,
            "server": list(server) if server else None,
            "rewinds": rewinds,
            "pattern": pattern,
            "deadline": deadline_ms,
        }
    )


def rebuild(
    meta: dict[str, Any], template: dict[str, Any], extra: Iterable[tuple[str, str]]
) -> Scope:
    """Return the ASGI scope of a journalled request; `extra` headers come back from outside."""
    headers = [*meta["headers"], *extra]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": meta["http_version"],
        "method": meta["method"],
        "scheme": meta["scheme"],
        "path": meta["path"],
        "raw_path": meta["raw_path"].encode("latin-1"),
        "query_string": meta["query"].encode("latin-1"),
        "root_path": meta["root_path"],
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers],
        "client": tuple(meta["client"]) if meta["client"] else None,
        "server": tuple(meta["server"]) if meta["server"] else None,
        "extensions": {},
    }
    if "state" in template:
        scope["state"] = dict(template["state"])
    if template.get("app") is not None:
        scope["app"] = template["app"]
    return scope


def fingerprint(scope: Scope, body: bytes) -> str:
    """Return what makes two requests the same one, for Idempotency-Key."""
    digest = hashlib.sha256()
    query = scope.get("query_string", b"")
    for part in (scope["method"].encode(), _text(scope["path"]).encode(), query, body):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()[:32]


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value, the first if there are several."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def _text(path: str) -> str:
    # Undecodable bytes reach us as surrogates, which JSON cannot hold.
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _without_secrets(query: bytes) -> str:
    text = query.decode("latin-1")
    if "=" not in text:
        return text
    kept = []
    for pair in text.split("&"):
        name, equals, _ = pair.partition("=")
        kept.append(f"{name}{equals}" if is_secret(unquote_plus(name)) else pair)
    return "&".join(kept)


def idempotency_key(scope: Scope) -> str | None:
    """Return the request's key, bare or quoted (draft-ietf-httpapi-idempotency-key-header).

    Raises: Problem 400 if it cannot be one.
    """
    text = header(scope, b"idempotency-key")
    if text is None:
        return None
    key = text.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX or not key.isprintable():
        detail = f"Idempotency-Key has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters"
        raise Problem(400, "malformed-idempotency-key", detail)
    return key
