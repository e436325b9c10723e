"""Leaving in good order at SIGTERM (I22).

Servers finish their requests before they send `lifespan.shutdown`, and a request that streams a
run may take long: so the signal itself must start the drain.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final
from weakref import WeakSet

from durable_endpoints.engine.engine import Engine
from durable_endpoints.limits import DRAIN_S

_ENGINES: WeakSet[Engine] = WeakSet()
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_draining: set[asyncio.Task[None]] = set()


async def drain_all(grace_s: float = DRAIN_S) -> None:
    """Drain every open engine of this process; runs at work get `grace_s` seconds."""
    await asyncio.gather(*(engine.drain(grace_s) for engine in list(_ENGINES) if engine.is_open))


def watch(engine: Engine) -> None:
    """Drain this engine when the process is told to end, then do what was to be done anyway."""
    _ENGINES.add(engine)
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if callable(before) and not hasattr(before, "durable_endpoints"):
            signal.signal(number, _chained(loop, before))


def _chained(
    loop: asyncio.AbstractEventLoop, before: Callable[[int, FrameType | None], Any]
) -> Callable[[int, FrameType | None], Any]:
    def handler(number: int, frame: FrameType | None) -> Any:
        for engine in list(_ENGINES):  # at once: others act on this signal too
            engine.leaving = True
        if not loop.is_closed():
            loop.call_soon_threadsafe(_start_drain)
        return before(number, frame)

    handler.durable_endpoints = True  # type: ignore[attr-defined]
    return handler


def _start_drain() -> None:
    task = asyncio.get_running_loop().create_task(drain_all())
    _draining.add(task)
    task.add_done_callback(_draining.discard)
