"""The secrets that approval links are signed with, and the links' paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from durable_endpoints.clock import Clock
from durable_endpoints.errors import NotDurable
from durable_endpoints.links import Link, new_secret, parse_secret, sign, verify
from durable_endpoints.stores.protocol import Store

ENVIRONMENT: Final = "DURABLE_SIGNING_SECRET"
# How long a link is good for whose wait has no end.
_EXPIRES_S: Final = int(timedelta(days=30).total_seconds())


class Signing:
    """Signs and verifies. The first secret signs, all of them verify.

    Without any, one is made and kept beside a SQLite database, in a file for its owner only.
    """

    def __init__(self, secrets: Sequence[str], store: Store, clock: Clock, prefix: str) -> None:
        given = secrets or os.environ.get(ENVIRONMENT, "").split()
        self._secrets = [parse_secret(text) for text in given]
        self._store = store
        self._clock = clock
        self._prefix = prefix

    def path(self, run_id: str, ident: str, until_ms: int | None) -> str:
        """Return the path at which a wait is decided on."""
        now_s = self._clock.now_ms() // 1000
        expires_s = now_s + _EXPIRES_S if until_ms is None else max(until_ms // 1000, now_s) + 1
        token = sign(self._loaded()[:1], run_id, ident, expires_s)
        return f"{self._prefix}/approvals/{token}"

    def verify(self, token: str) -> Link:
        """Return what a link is good for.

        Raises: BadLink, ExpiredLink.
        """
        return verify(self._loaded(), token, self._clock.now_ms() / 1000)

    def _loaded(self) -> list[bytes]:
        if not self._secrets:
            self._secrets = [parse_secret(self._kept())]
        return self._secrets

    def _kept(self) -> str:
        path: Path | None = getattr(self._store, "path", None)
        if path is None:
            if hasattr(self._store, "forgets"):
                return new_secret()
            raise NotDurable(
                f"approval links need a secret that all nodes share: set {ENVIRONMENT}, or "
                "signing_secrets= of DurableMiddleware, to one of "
                "durable_endpoints.links.new_secret()"
            )
        place = path.with_name(path.name + ".secret")
        if not place.exists():
            _keep(place, new_secret())
        return place.read_text().strip()


def _keep(place: Path, secret: str) -> None:
    """Write a secret for the owner's eyes only; whole or not at all, whatever happens."""
    draft = place.with_name(place.name + ".new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(place)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
