"""The life of a run, as a table. Everything that changes a status asks here."""

from __future__ import annotations

from typing import Final

from durable_endpoints.errors import IllegalTransition
from durable_endpoints.records import Status

TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    "running": frozenset({"suspended", "completed", "failed", "cancelled", "dead", "diverged"}),
    "suspended": frozenset({"running", "cancelled", "failed", "dead", "diverged"}),
    "dead": frozenset({"running", "cancelled"}),
    "diverged": frozenset({"running", "cancelled", "failed"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

# Nothing more will be appended by itself: observers are told the end.
ENDED: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled", "dead"})
# Whoever retries a run lets it go on from here.
REVIVABLE: Final[frozenset[Status]] = frozenset({"dead", "diverged"})
# Somebody, or something, is still to come: what there is an index of in every store.
UNFINISHED: Final[tuple[Status, ...]] = ("running", "suspended", "dead", "diverged")
# The journal holds a terminal entry (I15).
TERMINAL: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled"})


def move(old: Status, new: Status) -> Status:
    """Return `new` if the table allows it from `old`; staying is allowed while unfinished.

    Raises: IllegalTransition for anything else.
    """
    if new == old and old not in TERMINAL:
        return new
    if new in TRANSITIONS[old]:
        return new
    raise IllegalTransition(f"a {old} run cannot become {new}")
