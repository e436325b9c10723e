"""Which names carry secrets. What they carry is never stored (I19)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_SECRET: Final = re.compile(
    r"^(proxy-)?authorization$|^(set-)?cookie$|token(?!s)|secret|api[-_]?key|passw(or)?d|credential",
    re.IGNORECASE,
)


_SECRET_KEY: Final = re.compile(
    rb'"[^"]*(?:authorization|cookie|token(?!s)|secret|api[-_]?key|passw|credential)[^"]*" *:',
    re.IGNORECASE,
)


def names_secret(data: bytes) -> bool:
    """Say whether an object in this JSON has a key that holds a secret."""
    return _SECRET_KEY.search(data) is not None


@lru_cache(maxsize=1024)
def is_secret(name: str) -> bool:
    """Say whether a header, query parameter or argument of this name holds a secret."""
    return _SECRET.search(name) is not None
