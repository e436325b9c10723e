"""What the disk's journals say, read anew at every commit, and what must be true of it then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from zlib import crc32

from durable_endpoints.frames import unpack
from durable_endpoints.records import EVENT_KINDS, TERMINAL_KINDS, Entry, Frame, Kind

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Stream:
    """A stream step that has begun."""

    label: str
    policy: str
    items: list[str] = field(default_factory=list)


@dataclass
class Journal:
    """A run as the disk has it. Labels are places in its program, idents the engine's names."""

    world: World
    run_id: str
    owner: int  # the process that drives it, or did
    epoch: int = 1
    epochs: list[int] = field(default_factory=list)  # of its frames
    entries: list[Entry] = field(default_factory=list)
    events: list[tuple[Kind, bytes, int]] = field(default_factory=list)  # kind, payload, hash
    final: dict[str, str] = field(default_factory=dict)  # label -> value: must never run again
    idents: dict[str, str] = field(default_factory=dict)  # label -> ident
    streams: dict[str, Stream] = field(default_factory=dict)  # by key, while they are open
    intents: set[str] = field(default_factory=set)  # labels of effects
    labelled: set[str] = field(default_factory=set)  # keys of the calls that put labels on the run
    labels: str | None = None  # all that are on it
    attempts: Counter[str] = field(default_factory=Counter)  # failed ones, of labels
    due: dict[str, int] = field(default_factory=dict)  # key of a wait -> when, in ms
    waited: set[str] = field(default_factory=set)  # keys of waits that are over
    signals: dict[str, int] = field(default_factory=dict)  # id -> seq
    taken: set[int] = field(default_factory=set)  # seqs of signals
    undoable: list[str] = field(default_factory=list)  # idents, in order
    peeked: list[str] = field(default_factory=list)  # in this batch: what steps saw of other runs
    terminal: Kind | None = None
    cancel: bool = False
    deaths: set[int] = field(default_factory=set)  # how many events there were at each

    def blame(self, invariant: str, detail: str) -> None:
        """Note a violation."""
        self.world.blame(invariant, self.run_id, detail)

    # --- what becomes durable

    def add_frame(self, frame: Frame) -> None:
        """Take a frame that was written."""
        if frame.epoch != self.epoch:
            self.blame("I6", f"epoch {frame.epoch} committed, the run is at epoch {self.epoch}")
        if frame.first_seq != len(self.entries):
            self.blame("I8", f"entry {frame.first_seq} follows {len(self.entries) - 1}")
        crc = self.events[-1][2] if self.events else 0
        hash_in = frame.hash_in if frame.events else crc  # nobody looks at it otherwise
        if frame.first_offset != len(self.events) or hash_in != crc:
            self.blame("I4", f"a frame from offset {frame.first_offset}, {frame.hash_in:08x}; the "
                             f"log goes on at {len(self.events)}, {crc:08x}")  # fmt: skip
        self.epochs.append(frame.epoch)
        if frame.entries:
            for entry in unpack(frame.data, frame.first_seq):
                self._add(entry)
        if frame.first_offset + frame.events != len(self.events):
            self.blame("I4", f"a frame counts {frame.events} events")
        if frame.status == "dead":
            self.deaths.add(len(self.events))
        if frame.status == "diverged":
            self.blame("I11", f"replay differs: {frame.error}")

    def _add(self, entry: Entry) -> None:
        kind = entry.kind
        self.world.sometimes(f"{kind.name.lower()} is durable")
        if self.terminal is not None:
            self.blame("I15", f"{kind.name} after {self.terminal.name}")
        self.entries.append(entry)
        if kind in EVENT_KINDS:
            crc = crc32(entry.payload, self.events[-1][2] if self.events else 0)
            self.events.append((kind, entry.payload, crc))
        elif kind in TERMINAL_KINDS:
            self.terminal = kind
            if self.cancel and kind != Kind.CANCELLED:
                self.blame("I15", f"{kind.name} after it was durable that the run is cancelled")
        elif kind in _RULES:
            _RULES[kind](self, entry)

    def _identity(self, label: str, key: str) -> None:
        if self.idents.setdefault(label, key) != key:
            self.blame("I12", f"step {label} is {key}, was {self.idents[label]}")

    def _step(self, entry: Entry) -> None:
        if entry.key in self.streams:
            self._stream_end(entry)
            return
        label, value = _label(entry), entry.payload.decode()
        if label in self.final:
            self.blame("I2", f"step {label} has a second result")
        self._identity(label, entry.key)
        self.final[label] = value
        _, found, seen = value.strip('"').partition("~saw:")
        if found:
            self.peeked.append(seen)

    def _stream(self, entry: Entry) -> None:
        label = _label(entry)
        self._identity(label, entry.key)
        self.streams[entry.key] = Stream(label, entry.payload.decode())

    def _item(self, entry: Entry) -> None:
        stream = self.streams[entry.key]
        if stream.policy == "resume":
            self.final[f"{stream.label}#{len(stream.items)}"] = entry.payload.decode()
        stream.items.append(entry.payload.decode())

    def _reset(self, entry: Entry) -> None:
        del self.streams[entry.key]
        self.world.sometimes("a stream begins anew")

    def _stream_end(self, entry: Entry) -> None:
        stream = self.streams.pop(entry.key)
        self.final[stream.label] = json.dumps(stream.items)
        for number, item in enumerate(stream.items):
            self.final[f"{stream.label}#{number}"] = item
        if entry.payload == b"truncated":
            self.world.sometimes("a stream is finalized")
        elif entry.payload == b"closed":
            self.world.sometimes("a stream is left early")
        elif b"StreamInterrupted" in entry.payload:
            self.world.sometimes("a handler is told of an interruption")

    def _intent(self, entry: Entry) -> None:
        self.intents.add(_label(entry))
        self._identity(_label(entry), entry.key)

    def _attempt(self, entry: Entry) -> None:
        self.attempts[entry.key.rpartition("/")[2]] += 1

    def _wait(self, entry: Entry) -> None:
        until = json.loads(entry.payload)["until"]
        if until is not None:
            self.due[entry.key] = until

    def _waited(self, entry: Entry) -> None:
        """Check the end of a wait: not early, and once (I16)."""
        if entry.key in self.waited:
            self.blame("I16", f"the wait {entry.key} ends twice")
        self.waited.add(entry.key)
        process = self.world.process
        if entry.kind == Kind.FIRED and process is not None:
            early_ms = self.due[entry.key] - process.clock.due_ms()
            if early_ms > 0:
                self.blame("I16", f"the wait {entry.key} ends {early_ms} ms early")
        seq = json.loads(entry.payload or b"{}").get("signal")
        if seq is not None:
            if seq in self.taken:
                self.blame("I16", f"the signal {seq} is taken twice")
            self.taken.add(seq)

    def _signal(self, entry: Entry) -> None:
        signal_id = json.loads(entry.payload)["id"]
        if signal_id in self.signals:
            self.blame("I16", f"signal {signal_id} came in twice")
        self.signals[signal_id] = entry.seq

    def _labelled(self, entry: Entry) -> None:
        if entry.key in self.labelled:
            self.blame("I2", f"the label {entry.key} was put twice")
        self.labelled.add(entry.key)
        self.labels = entry.payload.decode()

    def _undoable(self, entry: Entry) -> None:
        self.undoable.append(entry.key.partition(" ")[0])

    def _cancel(self, entry: Entry) -> None:
        self.cancel = True

    def _retry(self, entry: Entry) -> None:
        """A dead run goes on: the failure that it died of is void."""
        for key in json.loads(entry.payload):
            for label in [label for label, ident in self.idents.items() if ident == key]:
                self.final.pop(label, None)
                self.attempts.pop(key.rpartition("/")[2], None)

    # --- what it says

    def undone(self) -> list[str]:
        """Return the idents of the calls that were undone, in order."""
        return [entry.key.partition(" ")[0].removeprefix("undo/") for entry in self.entries
                if entry.kind == Kind.STEP and entry.key.startswith("undo/")]  # fmt: skip

    def shown(self) -> list[str]:
        """Return what a reader of the whole log has in the end: no event that was taken back."""
        kept: list[tuple[int, str]] = []
        for offset, (kind, payload, _) in enumerate(self.events):
            if kind == Kind.REWIND:
                kept = [one for one in kept if one[0] <= json.loads(payload)["to"]]
            elif kind == Kind.EMIT:
                kept.append((offset, payload.decode().removeprefix("data: ").rstrip()))
        return [text for _, text in kept]


# What each kind of entry means to a journal. A new kind of work adds a line.
_RULES: Final[dict[Kind, Callable[[Journal, Entry], None]]] = {
    Kind.STEP: Journal._step,
    Kind.STEP_FAILED: Journal._step,
    Kind.STREAM: Journal._stream,
    Kind.ITEM: Journal._item,
    Kind.RESET: Journal._reset,
    Kind.STREAM_END: Journal._stream_end,
    Kind.INTENT: Journal._intent,
    Kind.ATTEMPT: Journal._attempt,
    Kind.TIMER: Journal._wait,
    Kind.WAIT: Journal._wait,
    Kind.FIRED: Journal._waited,
    Kind.RECEIVED: Journal._waited,
    Kind.SIGNAL: Journal._signal,
    Kind.UNDOABLE: Journal._undoable,
    Kind.LABEL: Journal._labelled,
    Kind.CANCEL: Journal._cancel,
    Kind.RETRY: Journal._retry,
}


def _label(entry: Entry) -> str:
    """Return the place in its program that an entry belongs to: its call's first argument."""
    label: str = json.loads(entry.args)[0]
    return f"undo {label}" if entry.key.startswith("undo/") else label
