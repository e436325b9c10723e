"""Recovery: finds runs that nobody drives, and drives them on over their journals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import orjson

from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.reader import read_journal, restore
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Corrupt, Fenced, StoreAway
from durable_endpoints.journal import Journal
from durable_endpoints.limits import (
    RECOVERIES_MAX,
    RECOVERIES_PARALLEL_MAX,
    RECOVERY_BACKOFF_S,
    RECOVERY_PATIENCE_S,
    RECOVERY_SUSPECT_S,
    RUNS_LIVE_MAX,
    SWEEP_INTERVAL_S,
)
from durable_endpoints.records import Entry, Kind, RunRecord
from durable_endpoints.standing import interruptions
from durable_endpoints.states import ENDED

logger = logging.getLogger("durable_endpoints")


# A cancelled run that holds these is driven to where it was, so that it can be undone.
_UNWOUND: Final = frozenset({Kind.UNDOABLE, Kind.SPAWN})


class Recovery:
    """Sweeps the store for unfinished runs at start, and every second after."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._taken: set[str] = set()
        self._damaged: set[str] = set()
        engine.waking.take = self._take
        engine.waking.drive = self.drive
        self._suspects: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep."""
        self.engine.spawn(self._sweep_forever())
        self.engine.spawn(self.engine.waking.watch())

    def drive(self, run: LiveRun) -> asyncio.Task[None]:
        """Drive a run on that was adopted."""
        self._taken.add(run.id)
        task = self.engine.spawn(self._recover(run))
        task.add_done_callback(partial(self._done, run.id))
        return task

    async def _sweep_forever(self) -> None:
        while not self.engine.leaving:
            try:
                self.engine.check_store()
                await self.sweep()
            except StoreAway as error:
                logger.warning("the sweep for unfinished runs waits: %s", error)
            except Exception:
                logger.exception("the sweep for unfinished runs failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_INTERVAL_S):
                    await self.engine.orphans.wait()
            self.engine.orphans.clear()

    async def sweep(self) -> None:
        """Take charge of every running run that nobody here drives; of suspects last, one by one.

        A suspect had its last recovery end without progress: it may be what ends the process.
        """
        fresh: list[RunRecord] = []
        suspects: list[RunRecord] = []
        async for record in self.engine.unfinished():
            if record.run_id not in self._taken:
                suspect = record.attempts > 0
                (suspects if suspect else fresh).append(record)
        for at in range(0, len(fresh), RECOVERIES_PARALLEL_MAX):
            await self._take(fresh[at : at + RECOVERIES_PARALLEL_MAX])
        if suspects and self._suspects is None:
            self._suspects = self.engine.spawn(self._take_suspects(suspects))
        if self.engine.remote is None:
            await self._let_readers_go()

    async def _let_readers_go(self) -> None:
        """Send readers to the store whose run was ended by a process that should not be there."""
        for run in [run for run in self.engine.idle.values() if run.record.status == "running"]:
            record = await self.engine.store.get(run.id)
            if (record is None or record.status in ENDED) and self.engine.idle.get(run.id) is run:
                run.fence("it was ended by another process")

    async def _take_suspects(self, suspects: Sequence[RunRecord]) -> None:
        try:
            for record in sorted(suspects, key=lambda record: record.attempts):
                step = min(record.attempts, len(RECOVERY_BACKOFF_S) - 1)
                since_s = (self.engine.clock.now_ms() - record.updated_at_ms) / 1000
                # The clock may have jumped: never longer than the step, never shorter than 0.
                wait_s = RECOVERY_BACKOFF_S[step] - max(0.0, since_s)
                await asyncio.sleep(max(0.0, wait_s))
                await self._take([record], RECOVERY_SUSPECT_S)
        finally:
            self._suspects = None

    async def _take(self, records: Sequence[RunRecord], suspect_s: float | None = None) -> None:
        """Recover some runs side by side; returns when they have caught up with their journals.

        A suspect gets `suspect_s` seconds to get further than ever, or to leave memory, alone: what
        ends the process then is not its doing.
        """
        engine = self.engine
        if engine.leaving:
            return
        # No more than there is room for, with what is being claimed: other nodes may have some.
        room = max(0, RUNS_LIVE_MAX - len(engine.runs) - len(engine.claiming))
        whole = [record.run_id for record in records if self._is_whole(record)]
        ids = [run_id for run_id in whole if run_id not in engine.runs][:room]
        driving = []
        interrupted = {record.run_id for record in records if record.status == "running"}
        for run in await engine.claim(ids):
            run.waits.interrupted = run.id in interrupted
            task = self.drive(run)
            driving.append(self._caught_up(run, task, progress=suspect_s is not None))
        try:
            async with asyncio.timeout(suspect_s or RECOVERY_PATIENCE_S):
                await asyncio.gather(*driving)
        except TimeoutError:
            return  # they go on; the others need not wait for them

    def _is_whole(self, record: RunRecord) -> bool:
        """Say whether a run is worth a claim: its row is not damaged, or that is news (I20)."""
        if record.status not in ENDED:
            return True
        known = record.run_id in self._damaged  # then its store has set it aside, or never will
        if not known:
            self._damaged.add(record.run_id)
            logger.error("run %s is set aside: %s", record.run_id, record.error)
        return not known

    async def _caught_up(self, run: LiveRun, task: asyncio.Task[None], *, progress: bool) -> None:
        while not task.done() and not (run.progressed if progress else run.caught_up):
            waiting: set[asyncio.Future[Any]] = {task, run.progress()}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    def _done(self, run_id: str, _: asyncio.Task[None]) -> None:
        self._taken.discard(run_id)

    async def _recover(self, run: LiveRun) -> None:
        engine, life = self.engine, run.life
        try:
            await self._drive(run)
        except Fenced as reason:
            logger.info("run %s: %s", run.id, reason)
        except Exception:
            logger.exception("run %s could not be recovered; the next sweep tries again", run.id)
        finally:
            await run.log.flush()
            if run.life is life and not run.resting:
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
            run.damaged = True
            return
        if self.engine.observer is not None:
            self.engine.observer.resumed(run, entries)
        run.cancellation.asked = any(entry.kind == Kind.CANCEL for entry in entries)
        if run.cancellation.asked and not any(entry.kind in _UNWOUND for entry in entries):
            run.waits.close()
            run.end(Kind.CANCELLED, "cancelled", None)
            return
        run.waits.restore(entries)
        started = entries[0]
        meta = orjson.loads(started.args)
        driver = self.engine.drivers.get(meta["kind"])
        if driver is None:
            run.park("diverged", f"nothing here drives runs of kind {meta['kind']!r}")
            return
        run.rewind_aware = bool(meta.get("rewinds"))
        run.progress_after = len(entries) + 1  # what recovery itself appends is no progress
        journal = Journal(interrupt(run, entries))
        run.progress_after = journal.voided
        if meta.get("deadline") is not None:
            run.waits.limit(meta["deadline"])
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
