"""For tests of durable endpoints: a clock that skips days, readers that keep transcripts."""

from durable_endpoints.testing.clock import TestClock
from durable_endpoints.testing.reader import Reader, Request
from durable_endpoints.testing.sse import Block, Decoder
from durable_endpoints.testing.transcript import Seen, Transcript, Violation, compare

__all__ = [
    "Block",
    "Decoder",
    "Reader",
    "Request",
    "Seen",
    "TestClock",
    "Transcript",
    "Violation",
    "compare",
]
