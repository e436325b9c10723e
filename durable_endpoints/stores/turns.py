"""How often threads take turns at the interpreter while a commit is on its way.

A busy event loop keeps the interpreter for as long as it may, 5 ms by Python's default, each time
that the writer's thread needs it for a moment. Then whoever waits for the commit waits for that,
and the loop is out of work before it is answered.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

from durable_endpoints.limits import SWITCH_US

if TYPE_CHECKING:
    from types import TracebackType


class Turns:
    """Shortens the turns of threads, of the whole process, for as long as somebody asks for it.

    A context manager; may be entered by many at a time. An interval that is shorter already, or
    that somebody else sets meanwhile, stays as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._before_us: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._asking += 1
            if self._asking == 1 and (before_us := _interval_us()) > SWITCH_US:
                self._before_us = before_us
                sys.setswitchinterval(SWITCH_US / 1e6)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        with self._lock:
            self._asking -= 1
            if self._asking or self._before_us is None:
                return
            if _interval_us() == SWITCH_US:
                sys.setswitchinterval(self._before_us / 1e6)
            self._before_us = None


def _interval_us() -> int:
    return round(sys.getswitchinterval() * 1e6)  # as which Python keeps it


SHORT_TURNS: Final = Turns()
