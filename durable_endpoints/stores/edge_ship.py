"""Ships what the local file of an edge node has to the centre, in order, and hands runs over.

One task does all of it, one round after the other. What became of a round that the centre did not
take is asked there: a run of epoch 1 whose owner is this node is still this node's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import orjson

from durable_endpoints import limits
from durable_endpoints.clock import Clock
from durable_endpoints.errors import StoreAway, StoreError
from durable_endpoints.records import Frame
from durable_endpoints.states import TERMINAL
from durable_endpoints.stores.edge_claims import Claims
from durable_endpoints.stores.edge_file import EdgeFile, Unshipped
from durable_endpoints.stores.edge_track import PARKED, Parcel, Track, parcel_of
from durable_endpoints.stores.nodes import Lag
from durable_endpoints.stores.protocol import PATIENCE_S

if TYPE_CHECKING:
    from durable_endpoints.stores.edge_centre import Centre

logger = logging.getLogger("durable_endpoints")

_AGAIN_S: Final = 0.5


class Shipper:
    """The way from the local file to the centre. `hand_over_s`: see `EdgeStore`."""

    def __init__(self, local: EdgeFile, centre: Centre, clock: Clock, hand_over_s: float) -> None:
        self.tracks: dict[str, Track] = {}
        self._trouble: str | None = "the centre has not answered yet"
        self._tell_after_s = 0.0
        self._sending = False
        self.ready = asyncio.Event()  # it is known which runs are still this node's
        self._local = local
        self._centre = centre
        self._clock = clock
        self._hand_over_s = hand_over_s
        self.claims = Claims(local, centre, self.tracks)
        self._more = asyncio.Event()
        self._round = asyncio.Lock()
        self._moved: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Why the centre does not answer; None while it does."""
        return self._trouble or (self._centre.away if self._sending else None)

    async def start(self) -> None:
        """Find what is not shipped, and begin."""
        self.ready.clear()
        self._trouble = "the centre has not answered yet"
        await self.claims.start()
        for found in await self._local.unfinished():
            if found.damaged:
                self.claims.set_aside(found.record.run_id)
            else:
                self.tracks[found.record.run_id] = self._track_of(found)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what is not shipped stays in the local file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def _track_of(self, found: Unshipped) -> Track:
        known, run = found.mark != "", found.record
        track = Track(
            run.status, run.last_seq, known, entries=run.last_seq + 1, bytes=found.size,
            since_ms=run.updated_at_ms, doubt=known, unheard=known,
            leaving=found.mark == "leaving",
        )  # fmt: skip
        if run.status in PARKED:
            track.leaving_at_ms = self._leaving_at_ms(run.wake_at_ms, run.updated_at_ms)
        return track

    # --- what the store tells, and asks

    def appended(self, batch: Sequence[Frame], fenced: frozenset[str]) -> None:
        """Note what the local file has now."""
        left_out = fenced | self.claims.alone | self.claims.damaged
        for frame in batch:
            if frame.run_id in left_out:
                continue
            track = self.tracks.get(frame.run_id)
            if track is None:
                track = self.tracks[frame.run_id] = Track(frame.status, -1)
                if frame.opening is None:  # it had ended, and was whole at the centre
                    track.known, track.shipped_seq = True, frame.first_seq - 1
            track.appended(frame, self._leaving_at_ms(frame.wake_at_ms, frame.at_ms))
        self._more.set()

    def claimed(self, run_ids: Iterable[str]) -> None:
        """Note that runs are driven here again."""
        for run_id in run_ids:
            if run_id in self.tracks:
                self.tracks[run_id].status = "running"
                self.tracks[run_id].leaving_at_ms = None

    def may_claim(self, run_id: str) -> bool:
        """Say whether this node may drive a run of its file."""
        track = self.tracks.get(run_id)
        return track is None or not (track.leaving or track.unheard)

    def in_doubt(self, run_id: str) -> bool:
        """Say whether another node may have a run, as far as this one knows (I3)."""
        track = self.tracks.get(run_id)
        if run_id in self.claims.damaged:
            return not self._centre.holds_lease
        if track is None:  # it is being given up; or the centre does not take it at all
            return run_id not in self.claims.alone
        if not track.known:
            return False  # the centre has never heard of it
        return track.doubt or not self._centre.holds_lease

    def lag(self, run_id: str | None) -> Lag:
        """See `Edge.lag`."""
        if run_id is None:
            found = [track for track in self.tracks.values() if track.entries]
        else:
            track = self.tracks.get(run_id)
            found = [track] if track is not None and track.entries else []
        times = [track.since_ms for track in found if track.since_ms is not None]
        entries, size = sum(t.entries for t in found), sum(t.bytes for t in found)
        return Lag(len(found), entries, size, min(times, default=None))

    def lag_json(self, run_id: str | None) -> bytes:
        """Return the same as JSON, with the time."""
        lag = self.lag(run_id)
        said = {"entries": lag.entries, "bytes": lag.bytes, "since_ms": lag.since_ms}
        return orjson.dumps({**said, "at_ms": self._clock.now_ms()})

    def lost(self, reason: str) -> None:
        """Note that the lease is over: whatever the centre knows may be driven by others."""
        if self._task is None:
            return  # it was given back
        self.claims.losses += 1
        self._trouble = reason
        for track in self.tracks.values():
            track.doubt = track.known
        logger.warning("%s; local work goes on, and what is not shipped may turn out void", reason)

    def _leaving_at_ms(self, wake_at_ms: int | None, at_ms: int) -> int | None:
        if self._hand_over_s == float("inf"):
            return None
        later_ms = at_ms + int(self._hand_over_s * 1000)
        return at_ms if wake_at_ms is not None and wake_at_ms > later_ms else later_ms

    async def hand_over(self, run_ids: Iterable[str], within_s: float) -> None:
        """Give runs that nothing is appended to any more to the centre.

        Returns when that is done, or after `within_s` seconds: then some stay in the local file.
        """
        wanted = [run_id for run_id in run_ids if run_id in self.tracks]
        for run_id in wanted:
            track = self.tracks[run_id]
            if not track.leaving:
                track.leaving = True
                track.touch()
        self._more.set()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + within_s
        while any(run_id in self.tracks for run_id in wanted) and self._task is not None:
            if loop.time() > until_s:
                left = [self.tracks[run_id] for run_id in wanted if run_id in self.tracks]
                logger.warning("%d runs stay on this node's disk: %s", len(left), self.trouble)
                for track in left:  # of what the centre may have, it has to say so itself
                    track.leaving = track.known
                return
            waiter = loop.create_future()
            self._moved.append(waiter)
            await asyncio.wait([waiter], timeout=max(0.0, until_s - loop.time()))

    async def shipped(self, within_s: float) -> None:
        """Wait until the centre has everything, for `within_s` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(track.dirty for track in self.tracks.values()):
                    self._more.set()
                    waiter = asyncio.get_running_loop().create_future()
                    self._moved.append(waiter)
                    await waiter

    async def delete(self, run_id: str) -> None:
        """Delete a run here and at the centre, while nothing is being shipped.

        Raises: StoreAway.
        """
        try:
            async with asyncio.timeout(limits.EDGE_LEAVE_S):
                await self._round.acquire()
        except TimeoutError as error:
            raise StoreAway(f"the centre does not answer: {self.trouble}") from error
        try:
            track = self.tracks.get(run_id)
            if run_id not in self.claims.alone and (track is None or track.known):
                await self._centre.erase(run_id)
            self.claims.drop([run_id])
            self.claims.alone.discard(run_id)
            await self._local.delete(run_id)
            await self._local.forget([run_id])
        finally:
            self._round.release()

    # --- the task

    async def _run(self) -> None:
        PATIENCE_S.set(limits.STORE_PATIENCE_S)
        while True:
            wait_s = _AGAIN_S
            try:
                await self._reach()
                async with self._round:
                    await self._settle_doubts()
                    self.ready.set()
                    await self._begin_leaving()
                    more = await self._ship()
                    await self._release()
                self._trouble = None
                await self._tell()
                wait_s = 0.0 if more else limits.EDGE_ROUND_S
            except StoreError as error:
                self._trouble = str(error)
                if self._local.failed is not None:
                    return  # the process is about to leave (I9)
            except Exception as error:
                self._trouble = f"{type(error).__name__}: {error}"
                logger.exception("shipping to the centre failed; it goes on")
            for waiter in self._moved:
                if not waiter.done():
                    waiter.set_result(None)
            self._moved.clear()
            await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> None:
        """Wait for more; at most until it is to be looked whether runs are to be handed over."""
        await asyncio.sleep(wait_s)
        if any(track.dirty or track.doubt or track.leaving for track in self.tracks.values()):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_S):
                await self._more.wait()
        self._more.clear()

    async def _reach(self) -> None:
        """Have a centre that answers.

        Raises: StoreRefused, StoreAway.
        """
        centre = self._centre
        if centre.nodes is None or centre.failed is not None:
            await centre.open()
        centre.at_hand.listener = self.claims.listener
        if not centre.holds_lease:
            raise StoreError(centre.away or "the lease of this node is over")

    async def _settle_doubts(self) -> None:
        doubts = [run_id for run_id, track in self.tracks.items() if track.doubt]
        for at in range(0, len(doubts), limits.LIST_ROWS_MAX):
            await self.claims.settle(doubts[at : at + limits.LIST_ROWS_MAX])

    async def _tell(self) -> None:
        """Say at the centre how far it is behind, now and then."""
        now_s = self._clock.monotonic_s()
        if now_s >= self._tell_after_s:
            self._tell_after_s = now_s + limits.EDGE_TELL_S
            await self._centre.tell(self.lag_json(None))

    async def _begin_leaving(self) -> None:
        """Mark the runs whose time to be handed over has come, before anything says so there."""
        now_ms = self._clock.now_ms()
        due = [
            run_id
            for run_id, track in self.tracks.items()
            if track.leaving_at_ms is not None and track.leaving_at_ms <= now_ms
            and track.known and not track.leaving and not track.dirty
        ]  # fmt: skip
        for run_id in due:
            self.tracks[run_id].leaving = True
        left = await self._local.leave(due) if due else set()
        for run_id in due:
            track = self.tracks[run_id]
            track.leaving = run_id in left
            track.touch()

    async def _ship(self) -> bool:
        """Ship what comes next of some runs; say whether there is more."""
        dirty = [run_id for run_id, t in self.tracks.items() if t.dirty and not t.doubt]
        ids = dirty[: limits.EDGE_ROUND_RUNS_MAX]
        if not ids:
            return False
        new = [run_id for run_id in ids if not self.tracks[run_id].known]
        if new:
            await self._local.note(new, "known")
            for run_id in new:
                self.tracks[run_id].known = True
        changes = {run_id: self.tracks[run_id].changes for run_id in ids}
        places = [(run_id, self.tracks[run_id].shipped_seq + 1) for run_id in ids]
        parcels = []
        for piece in await self._local.pieces(places, limits.EDGE_ROUND_BYTES_MAX):
            run_id = piece.record.run_id
            if piece.damaged:
                self.claims.set_aside(run_id)
                continue
            parcel = parcel_of(piece, self.tracks[run_id], changes[run_id])
            if parcel is None:
                self._clean(self.tracks[run_id], changes[run_id])
            else:
                parcels.append(parcel)
        self._sending = True
        try:
            fenced = await self._centre.append([parcel.frame for parcel in parcels])
        finally:
            self._sending = False
        if fenced and not self._centre.holds_lease:
            return True  # nothing is known of them; see `_settle_doubts`
        taken = [parcel for parcel in parcels if parcel.frame.run_id not in fenced]
        await self._shipped(taken)
        if fenced:
            await self.claims.settle(sorted(fenced), refused=True)
        return len(dirty) > len(parcels) or not all(parcel.whole for parcel in parcels)

    async def _shipped(self, parcels: Sequence[Parcel]) -> None:
        done, gone = [], []
        for parcel in parcels:
            frame, run = parcel.frame, parcel.piece.record
            track = self.tracks.pop(run.run_id)
            self.tracks[run.run_id] = track  # behind the others
            track.shipped_seq, track.refusals = frame.last_seq, 0
            track.entries = max(0, track.entries - parcel.entries)
            track.bytes = max(0, track.bytes - parcel.size)
            if parcel.whole:
                track.waits = frozenset(wait.ident for wait in parcel.piece.waits)
                self._clean(track, parcel.changes)
            if frame.status in TERMINAL:
                done.append(run.run_id)
                if run.concurrency_key is not None:
                    await self._centre.pass_on(run)
            elif frame.status in PARKED:
                gone.append(run.run_id)
        if done:
            await self._local.note(done, "done")
            self.claims.drop(done)
        await self.claims.forget(gone)

    def _clean(self, track: Track, changes: int) -> None:
        """Note that the centre has everything that there was at a moment."""
        track.shipped_changes = changes
        if not track.dirty:
            track.entries = track.bytes = 0
            track.since_ms = None
        else:
            track.since_ms = self._clock.now_ms()

    async def _release(self) -> None:
        """Hand over the runs that were left at work, now that the centre has all of them."""
        ready = [
            run_id
            for run_id, track in self.tracks.items()
            if track.leaving and track.known and not track.dirty and not track.doubt
            and track.status == "running"
        ]  # fmt: skip
        if ready:
            await self._local.note(ready, "leaving")
            await self._centre.release(ready)
            await self.claims.forget(ready)
