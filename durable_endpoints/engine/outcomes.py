"""What an exception out of a handler says: an error of its own, or a task told to stop."""

from __future__ import annotations

import asyncio
from typing import Final

from durable_endpoints.errors import ControlSignal

_ERROR_CHARS_MAX: Final = 2000


def is_cancellation(error: BaseException) -> bool:
    """Say whether an error is nothing but tasks being told to stop."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(inner) for inner in error.exceptions)
    return isinstance(error, asyncio.CancelledError | ControlSignal)


def described(error: BaseException) -> str:
    """Return an error as a run keeps it: a group of one is its one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
