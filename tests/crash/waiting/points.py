"""Named crash points around waiting and failing: in the store, and in the app's own calls outside.

`DURABLE_CRASH_AT="suspended.done:2"`: SIGKILL right after the second suspension has become durable.
`call.*` and `undo.*` are inside an effect and a compensation: before it is sent, while the other
side is at it, after it was answered and before anything of that is recorded.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Final

from durable_endpoints.records import Frame
from durable_endpoints.stores.protocol import Store
from durable_endpoints.stores.sqlite import SQLiteStore
from tests.crash.points import CrashStore

APP_POINTS: Final = tuple(
    f"{what}.{when}" for what in ("call", "undo") for when in ("begin", "mid", "done")
)
FRAME_POINTS: Final = ("suspended.begin", "suspended.done")
_MID_S: Final = 0.002  # after it was sent; the sink takes longer
_left: list[int] = []


def _at() -> str:
    """Return where to die; from the environment of this life, which is set after the import."""
    name, _, number = os.environ.get("DURABLE_CRASH_AT", "").partition(":")
    if not _left:
        _left.append(int(number or 1))
    return name


def die() -> None:
    """End the process here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def reach(name: str) -> None:
    """Die here, if this is the place and the time."""
    if name == _at():
        _left[0] -= 1
        if _left[0] == 0:
            die()


def reach_soon(name: str) -> None:
    """Die a moment from here, if this is the place and the time."""
    if name == _at():
        _left[0] -= 1
        if _left[0] == 0:
            asyncio.get_running_loop().call_later(_MID_S, die)


class WaitingStore(CrashStore):
    """Dies also where a run is suspended, and where one that was due is taken up."""

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        rests = any(frame.status == "suspended" for frame in batch)
        if rests:
            reach("suspended.begin")
        fenced = await super().append(batch)
        if rests:
            reach("suspended.done")
        return fenced


def crashing_store(path: str) -> Store:
    """Return the store of the app, which crashes where the environment says."""
    store = SQLiteStore(path)
    own = _at() in ("", *FRAME_POINTS, *APP_POINTS)
    at = "delete.done:1000000" if own else os.environ["DURABLE_CRASH_AT"]
    return WaitingStore(store, at)  # type: ignore[return-value]
