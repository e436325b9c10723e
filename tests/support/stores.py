"""The store under an app: SQLite, or PostgreSQL if TEST_STORE=postgres (at TEST_POSTGRES_URL)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

# A killed server's runs go on within a second, as they do where one process owns the store.
LEASE_TTL_S = 1


def store_address() -> str:
    """Return the store of an app: one for each working directory, whichever process has it."""
    if os.environ.get("TEST_STORE") != "postgres":
        return "sqlite:///durable.db"
    url = os.environ["TEST_POSTGRES_URL"]
    schema = "t_" + hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:12]
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}schema={schema}&lease_ttl={LEASE_TTL_S}"
