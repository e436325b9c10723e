"""Which names carry secrets. What they carry is never stored (I19)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_SECRET: Final = re.compile(
    r"^(proxy-)?authorization$|^(set-)?cookie$|token|secret|api[-_]?key|passw(or)?d|credential",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def is_secret(name: str) -> bool:
    """Say whether a header, query parameter or argument of this name holds a secret."""
    return _SECRET.search(name) is not None
