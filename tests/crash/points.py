"""Named crash points: a store that kills its own process at one of them.

`DURABLE_CRASH_AT="append.done:3"` means: SIGKILL right after the third append has become durable
and before the log hears of it. `step.begin` and `step.done` mean an append with an entry of that
kind. Read by tests/apps/crashy.py only; production code has no hooks.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any, Final

from durable_endpoints.frames import unpack
from durable_endpoints.records import Frame, Kind, RunRecord
from durable_endpoints.stores.protocol import Store, StoredFrame
from durable_endpoints.stores.sqlite import SQLiteStore

STORE_POINTS: Final = (
    "open.begin", "open.done", "append.begin", "append.half", "append.done", "append.woken",
    "claim.begin", "claim.done", "read.done", "release.begin", "release.done", "delete.begin",
    "delete.done", "close.begin", "close.done",
)  # fmt: skip
KIND_POINTS: Final = tuple(
    f"{kind.name.lower()}.{when}" for kind in Kind for when in ("begin", "done")
)
POINTS: Final = STORE_POINTS + KIND_POINTS


class CrashStore:
    """Delegates to a store; dies when the point that it was given comes up for the n-th time."""

    def __init__(self, store: Store, at: str) -> None:
        name, _, number = at.partition(":")
        if name not in POINTS:
            raise ValueError(f"DURABLE_CRASH_AT={at!r}: choose one of {', '.join(POINTS)}")
        self._store = store
        self._name = name
        self._left = int(number or 1)

    @property
    def failed(self) -> str | None:
        return self._store.failed

    def _reach(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    async def open(self) -> None:
        self._reach("open.begin")
        await self._store.open()
        self._reach("open.done")

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        kinds = _kinds(batch) if self._name in KIND_POINTS else set()
        self._reach("append.begin")
        for kind in kinds:
            self._reach(f"{kind}.begin")
        # From here on the batch is on its way to the disk, and nobody knows how far it gets.
        writing = asyncio.ensure_future(self._store.append(batch))
        await asyncio.sleep(0)
        self._reach("append.half")
        fenced = await writing
        self._reach("append.done")
        for kind in kinds:
            self._reach(f"{kind}.done")
        asyncio.get_running_loop().call_soon(self._reach, "append.woken")
        return fenced

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        found = await self._store.read(run_id, seq=seq, offset=offset, limit_bytes=limit_bytes)
        self._reach("read.done")
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)  # what no point is in

    async def claim(self, run_ids: Sequence[str], now_ms: int, **more: Any) -> Sequence[RunRecord]:
        if run_ids:
            self._reach("claim.begin")
        records = await self._store.claim(run_ids, now_ms, **more)
        if run_ids:
            self._reach("claim.done")
        return records

    async def release(self, run_ids: Sequence[str]) -> None:
        self._reach("release.begin")
        await self._store.release(run_ids)
        self._reach("release.done")

    async def delete(self, run_id: str) -> bool:
        self._reach("delete.begin")
        gone = await self._store.delete(run_id)
        self._reach("delete.done")
        return gone

    async def close(self) -> None:
        self._reach("close.begin")
        await self._store.close()
        self._reach("close.done")


def crashing_store(path: str | None) -> Store:
    """Return the store of the test app, which crashes where the environment says."""
    store = SQLiteStore(path or "durable.db", lock_wait_s=float(os.environ.get("LOCK_WAIT", "10")))
    at = os.environ.get("DURABLE_CRASH_AT", "")
    return CrashStore(store, at) if at else store  # type: ignore[return-value]


def _kinds(batch: Sequence[Frame]) -> set[str]:
    return {
        entry.kind.name.lower()
        for frame in batch
        if frame.entries
        for entry in unpack(frame.data, frame.first_seq)
    }
