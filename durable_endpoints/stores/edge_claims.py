"""Whose a run is: an edge node asks the centre, and lets go of what went on elsewhere (I6)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from durable_endpoints.states import TERMINAL
from durable_endpoints.stores.edge_file import EdgeFile
from durable_endpoints.stores.edge_track import EPOCH, Track
from durable_endpoints.stores.nodes import Listener, Tally

if TYPE_CHECKING:
    from durable_endpoints.stores.edge_centre import Centre, Place

logger = logging.getLogger("durable_endpoints")

# A run that the centre refuses so many times in a row, for no reason that is known, stays here.
_REFUSALS_MAX: Final = 3


class Claims:
    """What this node may go on with. `tracks` is the shipper's, and is kept right here."""

    def __init__(self, local: EdgeFile, centre: Centre, tracks: dict[str, Track]) -> None:
        self.tally = Tally(0, 0, 0)
        self.alone: set[str] = set()
        self.damaged: set[str] = set()  # runs of this file of which the centre gets no more
        self.listener: Listener | None = None  # is told of runs that are lost
        self.losses = 0  # of the lease
        self._local = local
        self._centre = centre
        self._tracks = tracks

    async def start(self) -> None:
        """Find the runs that the centre does not take."""
        self.alone = await self._local.alone()
        self.damaged.clear()
        self.tally = Tally(len(self.alone), 0, 0)

    def drop(self, run_ids: Sequence[str]) -> None:
        """Say no more of runs."""
        for run_id in run_ids:
            self._tracks.pop(run_id, None)

    def set_aside(self, run_id: str) -> None:
        """Ship no more of a run that is damaged here: the others go on (I20)."""
        logger.error("run %s is damaged on this node's disk: the centre gets no more of it", run_id)
        self.damaged.add(run_id)
        self.drop([run_id])

    async def forget(self, run_ids: Sequence[str]) -> None:
        """Remove runs that are the centre's now."""
        if run_ids:
            self.drop(run_ids)
            await self._local.forget(run_ids)

    async def settle(self, run_ids: Sequence[str], *, refused: bool = False) -> None:
        """Ask the centre whose runs are, and act by it."""
        losses = self.losses
        places = await self._centre.places(run_ids)
        missing = [run_id for run_id in run_ids if run_id not in places]
        deleted = await self._centre.deleted(missing) if missing else set()
        if self.losses != losses or not self._centre.holds_lease:
            return
        for run_id in run_ids:
            track = self._tracks.get(run_id)
            if track is None:
                continue
            if run_id in deleted:
                self.drop([run_id])
                await self._local.delete(run_id)
                await self._local.forget([run_id])
            elif refused and self._is_hopeless(track, run_id in places):
                await self._keep_alone(run_id)
            else:
                track.refusals += refused
                await self._believe(run_id, track, places.get(run_id))

    @staticmethod
    def _is_hopeless(track: Track, there: bool) -> bool:
        return track.refusals >= _REFUSALS_MAX or (not there and track.shipped_seq < 0)

    async def _believe(self, run_id: str, track: Track, place: Place | None) -> None:
        ours = place is None or (
            place.epoch == EPOCH and (place.owner == self._centre.node or place.status in TERMINAL)
        )
        if place is not None and (not ours or place.last_seq > track.local_seq):
            await self._give_up(run_id, track, place)
            return
        track.shipped_seq = -1 if place is None else place.last_seq
        track.waits = frozenset() if place is None else frozenset(place.waits)
        if track.unheard:
            track.leaving = False  # the process that meant to hand it over did not come to it
        track.doubt = track.unheard = False
        track.entries = track.local_seq - track.shipped_seq
        if place is not None and place.status in TERMINAL:
            await self._local.note([run_id], "done")
            self.drop([run_id])
        else:
            track.touch()

    async def _give_up(self, run_id: str, track: Track, place: Place) -> None:
        """Let go of a run that is others' now: what of it was not shipped is void (I6)."""
        void = max(0, track.local_seq - place.shipped_seq)
        if void:
            tally = self.tally
            self.tally = replace(
                tally, voided_runs=tally.voided_runs + 1, voided_entries=tally.voided_entries + void
            )
            logger.error("run %s went on elsewhere; %d entries of it are void", run_id, void)
        if place.owner == self._centre.node:  # the file is older than what was shipped from it
            await self._centre.release([run_id])
        await self.forget([run_id])  # first: whoever comes back finds it at the centre
        if self.listener is not None:
            self.listener.fenced("the run went on at another node", [run_id])

    async def _keep_alone(self, run_id: str) -> None:
        """Keep a run here only, for good: the centre does not take it."""
        self.alone.add(run_id)
        self.tally = replace(self.tally, refused_runs=self.tally.refused_runs + 1)
        logger.error(
            "the centre does not take run %s (it may have another one of its Idempotency-Key): it "
            "stays on this node's disk only", run_id,
        )  # fmt: skip
        await self._local.note([run_id], "alone")
        self.drop([run_id])
