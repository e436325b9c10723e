"""What a store for many nodes offers besides `Store`: news of other nodes, messages to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Message:
    """What one node asks of the node that drives a run. `data` and the answer are JSON.

    Messages of one `ident` to one run are one message.
    """

    run_id: str
    ident: str
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands in the store."""

    run_id: str
    epoch: int
    last_seq: int
    status: str


class Listener(Protocol):
    """Who is told of news. The calls come from the event loop; they are hints, and may be lost."""

    def moved(self, run_ids: Sequence[str]) -> None:
        """Another node has committed for these runs, which are followed here."""
        ...

    def mailed(self) -> None:
        """There are messages to runs that this node drives."""
        ...

    def answered(self) -> None:
        """A message of this node has its answer."""
        ...

    def orphaned(self) -> None:
        """Another node has handed its runs over."""
        ...

    def fenced(self, reason: str, run_ids: Sequence[str] | None = None) -> None:
        """The lease of this node is over: its runs may be driven by others; or these have been."""
        ...


class Nodes(Protocol):
    """One node among the others. Every coroutine may raise StoreAway and StoreFailed."""

    node: str
    listener: Listener | None

    @property
    def holds_lease(self) -> bool:
        """Whether this node may still begin what a crash cannot undo (I3)."""
        ...

    @property
    def away(self) -> str | None:
        """Why nothing can be written for now; None while all is well."""
        ...

    @property
    def poll_s(self) -> float:
        """How often to look, in seconds: seldom while news come by themselves."""
        ...

    async def follow(self, run_ids: Sequence[str]) -> Sequence[Standing]:
        """Return where runs stand, and have their nodes tell of their commits for a while."""
        ...

    async def unshipped(self, run_id: str) -> bytes | None:
        """Return what the disk of the run's node alone has, as that node said last.

        JSON: entries, bytes, since_ms, at_ms. None where no node has a disk of its own.
        """
        ...

    async def deposit(self, message: Message, *, answer: bool) -> bool:
        """Leave a message for a run that another living node drives; False if none does.

        Durable when it returns. With `answer`, somebody waits for the answer here.
        """
        ...

    async def mail(self) -> Sequence[Message]:
        """Return messages without an answer to runs that this node drives, oldest first."""
        ...

    async def answer(self, message: Message, answer: bytes) -> None:
        """Answer a message; one for whose answer nobody waits is removed."""
        ...

    async def answer_to(self, message: Message) -> bytes | None:
        """Return the answer to a message of this node, once there is one."""
        ...

    async def withdraw(self, message: Message) -> None:
        """Remove a message of this node."""
        ...


@dataclass(frozen=True, slots=True)
class Lag:
    """What is on the disk of an edge node only: what the loss of that disk would lose."""

    runs: int
    entries: int
    bytes: int
    since_ms: int | None  # when the oldest of it came; None if there is nothing


@dataclass(frozen=True, slots=True)
class Tally:
    """What an edge node has counted since it started."""

    refused_runs: int  # stay on its disk: the centre has another run of their Idempotency-Key
    voided_runs: int  # went on elsewhere, after the lease was over
    voided_entries: int  # of those runs: entries that were here only


@runtime_checkable
class Edge(Protocol):
    """What `Nodes` offers besides on a node whose own disk is the watermark of its runs."""

    @property
    def trouble(self) -> str | None:
        """Why the centre does not answer; None while it does."""
        ...

    @property
    def tally(self) -> Tally:
        """What has happened so far."""
        ...

    def lag(self, run_id: str | None = None) -> Lag:
        """Return what the centre does not have yet, of one run or of all."""
        ...

    async def settled(self, run_id: str) -> None:
        """Wait for as long as another node may have a run that this one drives."""
        ...
