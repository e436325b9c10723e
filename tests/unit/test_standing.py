"""What recovery decides about stream steps that a crash cut, by their entries alone."""

from __future__ import annotations

import pytest

from durable_endpoints.records import Entry, Kind
from durable_endpoints.standing import interruptions


def entries(*rows: tuple[Kind, str, bytes]) -> list[Entry]:
    return [Entry(seq, kind, key, 0, 0, 0, b"", payload)
            for seq, (kind, key, payload) in enumerate(rows)]  # fmt: skip


CUT = ((Kind.STARTED, "", b"{}"), (Kind.STREAM, "4 answer", b"hold"), (Kind.ITEM, "4 answer", b"1"))


@pytest.mark.parametrize(
    "later",
    [
        (Kind.STEP, "5 search", b"1"), (Kind.TIMER, "5 sleep", b"{}"), (Kind.VALUE, "6 now", b"0"),
        (Kind.STREAM, "5 other", b"hold"), (Kind.INTENT, "5 book", b""),
    ],
)  # fmt: skip
def test_a_stream_whose_task_went_on_is_left_alone(later: tuple[Kind, str, bytes]) -> None:
    assert "4 answer" not in interruptions(entries(*CUT, later), rewinds=False).resets


@pytest.mark.parametrize(
    "other",
    [
        (Kind.SIGNAL, "9", b"{}"), (Kind.SIGNAL, "a/9", b"{}"), (Kind.PATCH, "9", b""),
        (Kind.EMIT, "e9", b""), (Kind.STEP, "3 search", b"1"), (Kind.STEP, "task/9 search", b"1"),
    ],
)  # fmt: skip
def test_what_is_no_later_call_of_its_task_leaves_no_stream_behind(
    other: tuple[Kind, str, bytes],
) -> None:
    """Senders choose the names of signals, and handlers those of patches: a number is one, too."""
    assert interruptions(entries(*CUT, other), rewinds=False).resets == ("4 answer",)
