"""Run ids: UUIDv7 (RFC 9562, section 5.7), so that they sort by time; 74 bits are random."""

from __future__ import annotations

import os
import re
from typing import Final
from uuid import UUID

from durable_endpoints.clock import SystemClock

RUN_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_clock = SystemClock()


def new_uuid7() -> UUID:
    """Return a UUID of version 7 for this millisecond."""
    return UUID(int=_bits(_clock.now_ms()))


def new_run_id(now_ms: int) -> str:
    """Return a new run id."""
    text = f"{_bits(now_ms):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _bits(now_ms: int) -> int:
    random = int.from_bytes(os.urandom(10))
    high, low = random >> 68, random & ((1 << 62) - 1)
    return (now_ms << 80) | (7 << 76) | (high << 64) | (2 << 62) | low
