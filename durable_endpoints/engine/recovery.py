"""Recovery: finds runs that nobody drives, and drives them on over their journals."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import orjson

from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.reader import read_journal, restore
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Corrupt, Fenced
from durable_endpoints.journal import Journal, interruptions
from durable_endpoints.limits import (
    RECOVERIES_MAX,
    RECOVERIES_PARALLEL_MAX,
    RECOVERY_BACKOFF_S,
    SWEEP_INTERVAL_S,
)
from durable_endpoints.records import Entry, Kind, RunRecord

logger = logging.getLogger("durable_endpoints")


class Recovery:
    """Sweeps the store for unfinished runs at start, and every second after."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._slots = asyncio.Semaphore(RECOVERIES_PARALLEL_MAX)
        self._alone = asyncio.Lock()
        self._taken: dict[str, asyncio.Task[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())
        self.engine.tasks.add(self._sweeper)
        self._sweeper.add_done_callback(self.engine.tasks.discard)

    async def _sweep_forever(self) -> None:
        while not self.engine.draining:
            try:
                await self.sweep()
            except Exception:
                logger.exception("the sweep for unfinished runs failed; it goes on")
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self) -> None:
        """Take charge of every running run that nobody here drives."""
        engine = self.engine
        async for record in engine.unfinished():
            if engine.draining:
                return
            if record.run_id not in self._taken:
                task = asyncio.get_running_loop().create_task(self._take(record))
                self._taken[record.run_id] = task
                engine.tasks.add(task)
                task.add_done_callback(engine.tasks.discard)
                task.add_done_callback(partial(self._done, record.run_id))

    def _done(self, run_id: str, _: asyncio.Task[None]) -> None:
        del self._taken[run_id]

    async def _take(self, record: RunRecord) -> None:
        """Recover one run; suspects, which may have crashed the process, alone and last."""
        try:
            if record.attempts > 1 and record.last_seq <= record.attempt_seq:
                await self._wait_backoff(record)
                async with self._alone:
                    await self._recover(record)
            else:
                async with self._slots:
                    await self._recover(record)
        except Fenced as reason:
            logger.info("run %s: %s", record.run_id, reason)
        except Exception:
            logger.exception(
                "run %s could not be recovered; the next sweep tries again", record.run_id
            )

    async def _wait_backoff(self, record: RunRecord) -> None:
        step = min(record.attempts - 1, len(RECOVERY_BACKOFF_S) - 1)
        due_ms = record.updated_at_ms + int(RECOVERY_BACKOFF_S[step] * 1000)
        await asyncio.sleep(max(0, due_ms - self.engine.clock.now_ms()) / 1000)

    async def _recover(self, record: RunRecord) -> None:
        engine = self.engine
        if engine.draining or record.run_id in engine.runs:
            return
        claimed = await engine.store.claim(record.run_id, engine.clock.now_ms())
        if claimed is None:
            return
        run = engine.adopt(claimed)
        try:
            await self._drive(run)
        finally:
            await engine.log.flush()
            engine.forget(run)

    async def _drive(self, run: LiveRun) -> None:
        if run.record.attempts > RECOVERIES_MAX:
            logger.error("run %s made no progress in %d recoveries: dead", run.id, RECOVERIES_MAX)
            run.park("dead", f"no progress in {RECOVERIES_MAX} recoveries")
            return
        try:
            entries = await read_journal(self.engine.store, run.id)
            restore(run, entries)
        except Corrupt as error:
            logger.exception("run %s is damaged and set aside", run.id)
            run.park("dead", f"damaged: {error}")
            return
        if any(entry.kind == Kind.CANCEL for entry in entries):
            run.end(Kind.CANCELLED, "cancelled", None)
            return
        started = entries[0]
        meta = orjson.loads(started.args)
        driver = self.engine.drivers.get(meta["kind"])
        if driver is None:
            run.park("diverged", f"nothing here drives runs of kind {meta['kind']!r}")
            return
        run.rewind_aware = bool(meta.get("rewinds"))
        journal = Journal(interrupt(run, entries))
        logger.info("run %s goes on (attempt %d)", run.id, run.record.attempts)
        await driver(run, started, journal)


def interrupt(run: LiveRun, entries: list[Entry]) -> list[Entry]:
    """Append what becomes of interrupted stream steps; return the entries with it."""
    decided = interruptions(entries, rewinds=run.rewind_aware)
    added: list[Entry] = []
    at_ms = run.log.now_ms()
    if decided.rewind_to is not None:
        payload = orjson.dumps({"to": decided.rewind_to})
        run.append_event(Kind.REWIND, payload)
        added.append(Entry(run.seq - 1, Kind.REWIND, "", 0, at_ms, 0, b"", payload))
    for key in decided.resets:
        seq = run.append(Kind.RESET, key.encode())
        added.append(Entry(seq, Kind.RESET, key, 0, at_ms, 0, b"", b""))
    return entries + added
