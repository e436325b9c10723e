"""For tests of durable endpoints: a clock that skips days, replay of journals, readers."""

from durable_endpoints.testing.clock import TestClock
from durable_endpoints.testing.reader import Reader, Request
from durable_endpoints.testing.replaying import NotReplayable, Replayed, Replayer, replay
from durable_endpoints.testing.sse import Block, Decoder
from durable_endpoints.testing.transcript import Seen, Transcript, Violation, compare

__all__ = [
    "Block",
    "Decoder",
    "NotReplayable",
    "Reader",
    "Replayed",
    "Replayer",
    "Request",
    "Seen",
    "TestClock",
    "Transcript",
    "Violation",
    "compare",
    "replay",
]
