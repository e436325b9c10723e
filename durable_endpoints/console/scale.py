"""A time axis that folds long silences, so that a wait of three days hides no step. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# A silence is folded if it takes more of the axis than this, and then drawn this wide.
_FOLD_ABOVE: Final = 0.25
_FOLD_WIDTH: Final = 0.05
_FOLDS_MAX: Final = 4
_TICKS: Final = 6
# What a unit of the label is made of: nice steps for people.
_NICE_US: Final = tuple(
    base * power for power in (1, 10, 100, 1000, 10_000, 100_000) for base in (1, 2, 5)
) + tuple(
    seconds * 1_000_000
    for seconds in (
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200,
        86_400, 172_800, 432_000, 864_000, 2_592_000, 7_776_000, 31_536_000,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of time, and where on the axis (0 to 1) it is drawn."""

    begin_us: int
    end_us: int
    left: float
    right: float
    folded: bool = False


class Scale:
    """Places times between 0 and 1."""

    def __init__(
        self, begin_us: int, end_us: int, silences: Sequence[tuple[int, int]] = (),
        *, going: bool = False,
    ) -> None:  # fmt: skip
        self.going = going  # its end is now
        self.begin_us = begin_us
        self.end_us = max(end_us, begin_us + 1)
        self.pieces = _pieces(self.begin_us, self.end_us, silences)
        self._starts = [piece.begin_us for piece in self.pieces]

    def at(self, time_us: float) -> float:
        """Return where a time is drawn; times outside are at the ends."""
        if time_us <= self.begin_us:
            return 0.0
        if time_us >= self.end_us:
            return 1.0
        piece = self.pieces[bisect_right(self._starts, time_us) - 1]
        share = (time_us - piece.begin_us) / (piece.end_us - piece.begin_us)
        return piece.left + share * (piece.right - piece.left)

    def time(self, place: float) -> int:
        """Return the time that is drawn at a place between 0 and 1."""
        for piece in self.pieces:
            if place <= piece.right:
                share = (place - piece.left) / (piece.right - piece.left)
                return int(piece.begin_us + share * (piece.end_us - piece.begin_us))
        return self.end_us

    def ticks(self) -> list[tuple[float, int]]:
        """Return a few (place, time) at round times, none inside a fold."""
        open_us = sum(piece.end_us - piece.begin_us for piece in self.pieces if not piece.folded)
        step = next((nice for nice in _NICE_US if nice >= open_us / _TICKS), _NICE_US[-1])
        found = []
        for piece in self.pieces:
            if not piece.folded:
                first = -(-piece.begin_us // step) * step
                found += [(self.at(at), at) for at in range(first, piece.end_us + 1, step)]
        return [
            (place, at) for index, (place, at) in enumerate(found)
            if index == 0 or place - found[index - 1][0] > 0.04
        ]  # fmt: skip


def silences(busy: Iterable[tuple[int, int]], end_us: int) -> list[tuple[int, int]]:
    """Return the gaps between (begin, end) stretches, from 0 to `end_us`, in order."""
    found = []
    reached = 0
    for begin, end in sorted(busy):
        if begin > reached:
            found.append((reached, begin))
        reached = max(reached, end)
    if reached < end_us:
        found.append((reached, end_us))
    return found


def _pieces(begin: int, end: int, gaps: Sequence[tuple[int, int]]) -> list[Piece]:
    inside = [(max(a, begin), min(b, end)) for a, b in gaps if a < end and b > begin]
    folded: list[tuple[int, int]] = []
    shown = end - begin
    for gap in sorted(inside, key=lambda pair: pair[0] - pair[1])[:_FOLDS_MAX]:
        if gap[1] - gap[0] > _FOLD_ABOVE * shown and shown > gap[1] - gap[0]:
            folded.append(gap)
            shown -= gap[1] - gap[0]
    folded.sort()
    open_width = 1.0 - _FOLD_WIDTH * len(folded)
    pieces: list[Piece] = []
    at, left = begin, 0.0
    for gap_begin, gap_end in [*folded, (end, end)]:
        if gap_begin > at:
            right = left + open_width * (gap_begin - at) / shown
            pieces.append(Piece(at, gap_begin, left, right))
            left = right
        if gap_end > gap_begin:
            pieces.append(Piece(gap_begin, gap_end, left, left + _FOLD_WIDTH, folded=True))
            left += _FOLD_WIDTH
        at = gap_end
    return pieces
