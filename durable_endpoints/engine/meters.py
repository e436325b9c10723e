"""What a log counts of its work, for metrics: a step costs an append to a list, a batch some sums.

Times are sorted by powers of two of a microsecond: exact enough for an alarm, and all counts of
one kind are 40 integers.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

SIZES: Final = 40
_SORTED_AT: Final = 256


class Histogram:
    """How many whole numbers were how large: `counts[n]` of them are below 2^n and not 2^(n-1)."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * SIZES
        self.total = 0

    def add(self, value: int) -> None:
        """Count a number; what is larger than 2^39 counts as that."""
        self.counts[min(value.bit_length(), SIZES - 1)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return sum(self.counts)

    def since(self, before: Histogram) -> Histogram:
        """Return what was counted since a copy was made."""
        later = Histogram()
        later.counts = [a - b for a, b in zip(self.counts, before.counts, strict=True)]
        later.total = self.total - before.total
        return later

    def copy(self) -> Histogram:
        """Return the counts as they are now."""
        return self.since(Histogram())

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing."""
        return self.total / max(1, self.count)

    def quantile(self, share: float) -> float:
        """Return what `share` of the numbers are below, within a factor of two; 0 of nothing."""
        left = share * self.count
        for size, count in enumerate(self.counts):
            if count and left <= count:
                low = (1 << size) // 2
                return low + ((1 << size) - low) * left / count
            left -= count
        return 0.0


class Meters:
    """Counts of one log. `took_us`, of at most 2^32, is sorted once in a while."""

    __slots__ = ("batches", "commits_us", "readers", "retries", "steps_us", "took_us")

    def __init__(self) -> None:
        self.took_us: list[int] = []  # of steps that are not sorted yet
        self.steps_us = Histogram()
        self.commits_us = Histogram()
        self.batches = Histogram()  # entries
        self.retries = 0
        self.readers = 0  # connections that follow a run, now

    def batch(self, took_s: float, entries: int) -> None:
        """Count a batch that has become durable."""
        self.commits_us.add(int(took_s * 1e6))
        self.batches.add(entries)
        if len(self.took_us) >= _SORTED_AT:
            self.sort()

    def sort(self) -> None:
        """Sort what steps have appended, all at once: that is cheaper by far than one by one."""
        took_us, self.took_us = self.took_us, []
        for size, count in Counter(map(int.bit_length, took_us)).items():
            self.steps_us.counts[size] += count
        self.steps_us.total += sum(took_us)
