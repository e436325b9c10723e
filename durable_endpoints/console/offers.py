"""Where a run can be forked, and what can be changed there. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from durable_endpoints.console.inert import shown
from durable_endpoints.records import Entry, Kind

_EDITED_CHARS_MAX = 30_000


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to fork at an entry. `field` names what can be edited, if anything can."""

    label: str
    text: str
    before: int  # the first entry that the fork does not share
    name: str = ""
    field: str = ""
    value: str = ""


def offers(entry: Entry) -> list[Offer]:
    """Return how a run can be forked at one of its entries."""
    text = entry.payload.decode(errors="replace")
    whole = len(text) <= _EDITED_CHARS_MAX and text.encode() == entry.payload
    found = []
    if entry.kind == Kind.STARTED:
        found.append(Offer("Run it anew", "A new run with the same request, from its start.", 1))
        if whole:
            said = "A new run of the same request with another body."
            found.append(Offer("Run it with another body", said, 1, "Body", "input", text))
    elif entry.kind in (Kind.STEP, Kind.STEP_FAILED):
        said = "A new run shares everything before this step, then does it again."
        found.append(Offer("Fork before this step", said, entry.seq))
        if entry.kind == Kind.STEP and whole:
            said = "A new run shares everything up to here, but gets this result of the step."
            value = shown(entry.payload, _EDITED_CHARS_MAX)
            offer = Offer(
                "Fork with another result", said, entry.seq + 1, "Result", "result", value
            )
            found.append(offer)
    return found
