"""What one reader saw of a run, and the rules that it must keep (I1, I4, I5, I15)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from durable_endpoints.testing.sse import Block

_OURS: Final = re.compile(r"(?P<run>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(\d+)-(\w+)")
RUN: Final = "durable.run"
DONE: Final = "durable.done"
REWIND: Final = "durable.rewind"
# What becomes of a run between its events, for readers that ask for control events.
STATES: Final = frozenset({"durable.suspended", "durable.resumed"})
# Statuses at which the response is whole, or nothing more will come of it.
FINAL: Final = frozenset({"completed", "failed", "cancelled", "dead", "running"})


class Violation(NamedTuple):
    """A broken promise: which invariant, of which run, and what was seen."""

    invariant: str
    run_id: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant} run {self.run_id}: {self.detail}"


class Seen(NamedTuple):
    """One event as a reader got it. `offset` is None where the app gave the event its own id."""

    offset: int | None
    mark: str  # the hash in our id, or the app's own id
    event: str
    data: str


@dataclass
class Transcript:
    """Everything that one reader got of one run's stream, over all its connections.

    `control` says that the reader asked for control events. `violations` are those that show
    without the final log; `compare` finds the others.
    """

    reader: str
    control: bool
    run_id: str | None = None
    seen: list[Seen] = field(default_factory=list)
    cursor: str | None = None  # the id of the last event, to resume after
    status: str | None = None  # what durable.done said
    error: str | None = None
    whole: bool = False  # the reader was told that nothing more comes
    connections: int = 0
    restarts: int = 0  # told to read anew, because what it had was taken back
    violations: list[Violation] = field(default_factory=list)

    def blame(self, invariant: str, detail: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(invariant, self.run_id or "?", f"{self.reader}: {detail}"))

    def begin_anew(self) -> None:
        """Forget what was read: the server said that it was taken back."""
        self.restarts += 1
        self.seen.clear()
        self.cursor = None

    def take(self, block: Block) -> None:
        """Take one block of the stream, in the order in which it came."""
        if block.event == RUN and block.id is None:
            self._named(json.loads(block.data)["run_id"])
        elif block.event == DONE and block.id is None:
            self._done(json.loads(block.data))
        elif block.event in STATES and block.id is None and self.control:
            json.loads(block.data)
        else:
            self._event(block)

    def _named(self, run_id: str) -> None:
        if self.run_id is None:
            self.run_id = run_id
        elif self.run_id != run_id:
            self.blame("I4", f"the stream became that of run {run_id}")

    def _done(self, told: dict[str, str | None]) -> None:
        if self.whole:
            self.blame("I15", f"a second end: {told}")
        self.status, self.error, self.whole = str(told["status"]), told["error"], True
        if self.status not in FINAL:
            self.blame("I15", f"the end says {self.status}")

    def _event(self, block: Block) -> None:
        if self.whole:
            self.blame("I15", f"an event after the end: {block}")
        ours = _OURS.fullmatch(block.id or "")
        offset, mark = None, block.id or ""
        if ours is not None:
            offset, mark = int(ours[2]), ours[3]
            self._named(ours["run"])
            self._check_offset(offset)
        elif block.id is None:
            self.blame("I4", f"an event without an id: {block}")
        self.seen.append(Seen(offset, mark, block.event, block.data))
        self.cursor = block.id or self.cursor

    def _check_offset(self, offset: int) -> None:
        last = self.seen[-1].offset if self.seen else 0
        if last is None:
            return
        if offset <= last:
            self.blame("I4", f"offset {offset} again, after {last}")
        elif offset != last + 1 and self.control:
            self.blame("I4", f"offset {offset} after {last}: events are missing")

    def standing(self) -> list[Seen]:
        """Return the events that no rewind took back, without the rewinds."""
        kept: list[Seen] = []
        for item in self.seen:
            if item.event == REWIND:
                to = int(json.loads(item.data)["to"])
                kept = [old for old in kept if old.offset is None or old.offset <= to]
            else:
                kept.append(item)
        return kept


def compare(transcript: Transcript, log: Transcript) -> list[Violation]:
    """Return where a transcript is not what the final log says (I1, I4, I5).

    `log` was read from the start, with control events, after the run's end. A transcript that
    was told the end must be the whole log, any other one the beginning of it.
    """
    wanted = log.seen if transcript.control else log.standing()
    run_id, found = log.run_id or "?", []
    for place, item in enumerate(transcript.seen):
        if place >= len(wanted):
            detail = f"{transcript.reader} has {item}, which is behind the log's end"
            return [Violation("I1", run_id, detail)]
        if item != wanted[place]:
            detail = f"{transcript.reader} has {item}, the log {wanted[place]} (event {place})"
            return [Violation("I5", run_id, detail)]
    if transcript.whole and len(transcript.seen) < len(wanted):
        missing = wanted[len(transcript.seen)]
        detail = f"{transcript.reader} was told the end before {missing}"
        found.append(Violation("I5", run_id, detail))
    if transcript.status and log.status and not _agree(transcript.status, log.status):
        detail = f"{transcript.reader} was told {transcript.status}, the log says {log.status}"
        found.append(Violation("I15", run_id, detail))
    return found


def _agree(early: str, late: str) -> bool:
    # "running" said that the response was whole while background work went on.
    return early in ("running", late)
