"""What an edge node knows of one run on its way to the centre, and the frame that goes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from durable_endpoints.errors import Corrupt
from durable_endpoints.frames import join
from durable_endpoints.records import Frame, Status
from durable_endpoints.states import ENDED, TERMINAL
from durable_endpoints.stores.edge_file import Piece
from durable_endpoints.stores.protocol import StoredFrame

# Statuses of runs that nobody drives: they can be handed over as they are.
PARKED: Final = frozenset({"suspended", "dead", "diverged"})
# The epoch of a run at the centre for as long as it is this node's: others raise it.
EPOCH: Final = 1


@dataclass(slots=True)
class Track:
    """One run that this node may commit for, or of which the centre lacks something."""

    status: str
    local_seq: int
    known: bool = False  # the centre may have heard of it
    shipped_seq: int = -1  # of the last entry that the centre has
    entries: int = 0  # not shipped
    bytes: int = 0
    since_ms: int | None = None
    changes: int = 1
    shipped_changes: int = 0
    doubt: bool = False  # the lease was over: another node may have it
    unheard: bool = False  # this process has not been told yet whether it is still this node's
    leaving: bool = False  # being handed over: nobody here may claim it any more
    leaving_at_ms: int | None = None  # of a parked run: when it is to be handed over
    refusals: int = 0
    waits: frozenset[str] = field(default_factory=frozenset)  # open at the centre

    @property
    def dirty(self) -> bool:
        """Whether there is something to ship."""
        return self.changes != self.shipped_changes

    def appended(self, frame: Frame, leaving_at_ms: int | None) -> None:
        """Note a frame that the local file has."""
        self.status, self.local_seq = frame.status, frame.last_seq
        self.entries += frame.entries
        self.bytes += len(frame.data)
        self.changes += 1
        if self.since_ms is None:
            self.since_ms = frame.at_ms
        self.leaving_at_ms = leaving_at_ms if frame.status in PARKED else None

    def touch(self) -> None:
        """Have it looked at again."""
        self.changes += 1


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes to the centre of one run in one round."""

    frame: Frame
    entries: int
    size: int
    changes: int  # of the track, when it was put together
    whole: bool  # whether the centre has everything then
    piece: Piece


def parcel_of(piece: Piece, track: Track, changes: int) -> Parcel | None:
    """Return what comes next of a run; None if the centre has everything.

    A run that rests goes as one that is at work, until it is handed over: it is this node's.
    """
    run = piece.record
    frames, data = _joined(piece.frames)
    last_seq = frames[-1].first_seq + frames[-1].entries - 1 if frames else track.shipped_seq
    whole = last_seq == run.last_seq
    final = whole and (run.status in TERMINAL or (track.leaving and run.status in PARKED))
    status: Status = run.status if final else "running"
    idents = frozenset(wait.ident for wait in piece.waits)
    if not frames and not final and idents == track.waits:
        return None
    first_seq = track.shipped_seq + 1
    events = sum(frame.events for frame in frames)
    frame = Frame(
        run.run_id, EPOCH, first_seq, last_seq + 1 - first_seq,
        frames[0].first_offset if frames else run.events, events,
        frames[0].hash_in if frames else 0, data, run.updated_at_ms, status,
        replace(run, epoch=EPOCH, attempts=0) if first_seq == 0 else None,
        run.error if final else None, bool(frames),
        run.wake_at_ms if final else None, run.waiting if final else None,
    )  # fmt: skip
    if whole:
        frame.waits = tuple(wait for wait in piece.waits if wait.ident not in track.waits)
        frame.answered = tuple(sorted(track.waits - idents))
        frame.labels = run.labels
        frame.wakes = run.parent if status in ENDED else None
    size = sum(len(part.data) for part in frames)
    return Parcel(frame, frame.entries, size, changes, whole, piece)


def _joined(frames: Sequence[StoredFrame]) -> tuple[Sequence[StoredFrame], bytes]:
    """Return frames that travel as one, and its bytes; a damaged one travels alone, as it is."""
    try:
        return frames, join([frame.data for frame in frames]) if frames else b""
    except Corrupt:
        return frames[:1], frames[0].data
