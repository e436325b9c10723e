"""For tests of durable endpoints: readers that keep transcripts, and what transcripts must obey."""

from durable_endpoints.testing.reader import Reader, Request
from durable_endpoints.testing.sse import Block, Decoder
from durable_endpoints.testing.transcript import Seen, Transcript, Violation, compare

__all__ = [
    "Block",
    "Decoder",
    "Reader",
    "Request",
    "Seen",
    "Transcript",
    "Violation",
    "compare",
]
