"""A run's recent events, kept in memory for its readers."""

from __future__ import annotations

from typing import NamedTuple

from durable_endpoints.limits import RECENT_BYTES_MAX
from durable_endpoints.records import Kind


class Event(NamedTuple):
    """What observers see. `crc` is the rolling hash up to and with this event."""

    offset: int
    kind: Kind
    payload: bytes
    crc: int


class Recent:
    """The newest events of a run: all that are not durable yet, and some before them."""

    __slots__ = ("_bytes", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._bytes = 0

    def add(self, event: Event) -> None:
        """Keep one more."""
        self.events.append(event)
        self._bytes += len(event.payload)

    def between(self, offset: int, until: int) -> list[Event] | None:
        """Return the events from `offset` on below `until`; None if memory begins later."""
        events = self.events
        if not events or events[0].offset > offset:
            return None if offset < until else []
        first = events[0].offset
        return events[offset - first : until - first]

    def end_at(self, offset: int) -> None:
        """Drop the events from `offset` on: they were never made durable.

        Drop all if some before it are missing: another node has added them.
        """
        while self.events and self.events[-1].offset >= offset:
            self._bytes -= len(self.events.pop().payload)
        if self.events and self.events[-1].offset + 1 < offset:
            self.events, self._bytes = [], 0

    def trim(self, durable: int) -> None:
        """Drop old events, when there are many; those from offset `durable` on stay."""
        if self._bytes <= 2 * RECENT_BYTES_MAX:
            return
        keep, size = len(self.events), 0
        while keep and (size < RECENT_BYTES_MAX or self.events[keep - 1].offset >= durable):
            keep -= 1
            size += len(self.events[keep].payload)
        del self.events[:keep]
        self._bytes = size
