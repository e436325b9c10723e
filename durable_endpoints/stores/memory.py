"""The reference store: what the others must do, in the fewest lines. Forgets at exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from durable_endpoints.labels import terms
from durable_endpoints.limits import RUNS_COUNTED_MAX
from durable_endpoints.records import Frame, RunRecord, Status, WaitRecord
from durable_endpoints.states import ENDED, UNFINISHED, move
from durable_endpoints.stores.nodes import Nodes
from durable_endpoints.stores.protocol import Begun, Query, StoredFrame, WaitQuery
from durable_endpoints.stores.waits import fields_of, match_of

_NOBODY = "\0"


class MemoryStore:
    """Implements `Store` in dictionaries."""

    forgets = True  # nothing outlives the process

    def __init__(self) -> None:
        self.failed: str | None = None
        self.nodes: Nodes | None = None
        self._runs: dict[str, RunRecord] = {}
        self._frames: dict[str, list[StoredFrame]] = {}
        self._waits: dict[str, dict[str, WaitRecord]] = {}
        self._deleted: dict[str, str | None] = {}

    async def open(self) -> None:
        """See `Store.open`."""

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`."""
        fenced = set()
        for frame in batch:
            if frame.opening is not None and not self._known(frame.run_id):
                self._runs[frame.run_id] = replace(frame.opening)
                self._frames[frame.run_id] = []
            run = self._runs.get(frame.run_id)
            if run is None or run.epoch != frame.epoch or run.last_seq != frame.first_seq - 1:
                fenced.add(frame.run_id)
                continue
            if frame.entries:
                stored = StoredFrame(
                    frame.first_seq,
                    frame.entries,
                    frame.first_offset,
                    frame.events,
                    frame.hash_in,
                    frame.data,
                )
                self._frames[frame.run_id].append(stored)
            run.last_seq = frame.last_seq
            run.events = frame.first_offset + frame.events
            run.status = move(run.status, frame.status)
            run.updated_at_ms = frame.at_ms
            run.attempts = 0 if frame.progress else run.attempts
            run.error = frame.error
            run.wake_at_ms, run.waiting = frame.wake_at_ms, frame.waiting
            run.labels = frame.labels or run.labels
        for frame in batch:
            if frame.run_id not in fenced:
                self._follow(frame)
        return frozenset(fenced)

    def _follow(self, frame: Frame) -> None:
        """Open and answer the frame's waits, and wake whom it wakes."""
        waits = self._waits.setdefault(frame.run_id, {})
        waits.update({wait.ident: wait for wait in frame.waits})
        for ident in frame.answered:
            if ident == "*":
                waits.clear()
            waits.pop(ident, None)
        waiting = self._runs.get(frame.wakes or "")
        if waiting is not None and waiting.status == "suspended":
            waiting.wake_at_ms = 0

    async def waits(self, query: WaitQuery) -> Sequence[WaitRecord]:
        """See `Store.waits`."""
        rows = [self._waits.get(run_id, {}) for run_id in sorted(self._runs)]
        return [wait for row in rows for _, wait in sorted(row.items()) if _wanted(wait, query)][
            : query.limit
        ]

    def _known(self, run_id: str) -> bool:
        return run_id in self._runs or run_id in self._deleted

    async def read(
        self, run_id: str, *, seq: int = 0, offset: int | None = None, limit_bytes: int
    ) -> list[StoredFrame]:
        """See `Store.read`."""
        found: list[StoredFrame] = []
        size = 0
        for frame in self._frames.get(run_id, ()):
            if frame.first_seq + frame.entries <= seq:
                continue
            if offset is not None and frame.first_offset + frame.events <= offset:
                continue
            found.append(frame)
            size += len(frame.data)
            if size >= limit_bytes:
                break
        return found

    async def get(self, run_id: str) -> RunRecord | None:
        """See `Store.get`."""
        run = self._runs.get(run_id)
        return replace(run) if run else None

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """See `Store.find`."""
        for run in self._runs.values():
            if (run.principal, run.name, run.idempotency_key) == (principal, name, key):
                return replace(run)
        return None

    async def list(self, query: Query) -> list[RunRecord]:
        """See `Store.list`."""
        if query.concurrency_key is not None:
            place = (query.principal, query.name, query.concurrency_key)
            runs = self._runs.values()  # in the order in which they were opened
            return [replace(run) for run in runs if _is_unfinished_at(run, place)][: query.limit]
        rows = sorted(self._runs.values(), key=lambda run: run.run_id, reverse=True)
        return [
            replace(run)
            for run in rows
            if (not query.statuses or run.status in query.statuses)
            and (query.name is None or run.name == query.name)
            and (query.principal is None or run.principal == query.principal)
            and (query.before is None or run.run_id < query.before)
            and (query.due_ms is None or _is_due(run, query.due_ms))
            and (query.parent is None or run.parent == query.parent)
            and terms(run.labels).issuperset(query.labels)
        ][: query.limit]

    async def count(self) -> Mapping[Status, int]:
        """See `Store.count`."""
        statuses = [run.status for run in self._runs.values()]
        return {s: min(statuses.count(s), RUNS_COUNTED_MAX) for s in UNFINISHED}

    async def begun(self, since: str, before: str | None, limit: int) -> Sequence[Begun]:
        """See `Store.begun`."""
        runs = [run for run in self._runs.values()
                if run.run_id >= since and (before is None or run.run_id < before)]  # fmt: skip
        runs = sorted(runs, key=lambda run: run.run_id, reverse=True)[:limit]
        found: dict[tuple[int, str, Status], list[str]] = {}
        for run in runs:
            key = (run.created_at_ms // 60_000, run.name, run.status)
            found.setdefault(key, []).append(run.run_id)
        return [
            Begun(*key, len(ids), tuple(ids) if key[2] in UNFINISHED else ())
            for key, ids in found.items()
        ]

    async def claim(
        self, run_ids: Sequence[str], now_ms: int, *, dead: bool = False
    ) -> Sequence[RunRecord]:
        """See `Store.claim`."""
        return [found for run_id in run_ids if (found := self._claim(run_id, now_ms, dead=dead))]

    def _claim(self, run_id: str, now_ms: int, *, dead: bool) -> RunRecord | None:
        run = self._runs.get(run_id)
        if run is None or (run.status in ENDED and not (dead and run.status == "dead")):
            return None
        if run.status == "suspended":
            run.status = "running"
        else:
            run.attempts += 1
        run.wake_at_ms = run.waiting = None
        run.epoch += 1
        run.updated_at_ms = now_ms
        return replace(run)

    async def release(self, run_ids: Sequence[str]) -> None:
        """See `Store.release`."""
        for run_id in run_ids:
            if run_id in self._runs:
                self._runs[run_id].attempts = 0

    async def delete(self, run_id: str) -> bool:
        """See `Store.delete`."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return False
        self._frames.pop(run_id, None)
        self._waits.pop(run_id, None)
        self._deleted[run_id] = run.principal
        return True

    async def was_deleted(self, run_id: str, principal: str | None) -> bool:
        """See `Store.was_deleted`."""
        return self._deleted.get(run_id, _NOBODY) == principal

    async def close(self) -> None:
        """See `Store.close`."""


def _is_unfinished_at(run: RunRecord, place: tuple[str | None, str | None, str]) -> bool:
    return (run.principal, run.name, run.concurrency_key) == place and run.status not in ENDED


def _is_due(run: RunRecord, due_ms: int) -> bool:
    return run.wake_at_ms is not None and run.wake_at_ms <= due_ms


def _wanted(wait: WaitRecord, query: WaitQuery) -> bool:
    return (
        query.payload is None
        or (wait.match is not None and match_of(fields_of(wait.match), query.payload) == wait.match)
    ) and (
        query.name in (None, wait.name)
        and query.run_id in (None, wait.run_id)
        and (not query.kinds or wait.kind in query.kinds)
        and (query.any_principal or query.principal == wait.principal)
    )
