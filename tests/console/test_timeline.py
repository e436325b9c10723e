"""From a journal to a drawing: steps, branches, attempts, recoveries, waits, folds, zoom."""

from __future__ import annotations

import orjson
import pytest

from durable_endpoints.console.digest import SPANS_MAX, Digest
from durable_endpoints.console.drawing import draw, histogram, sparkline, zooms
from durable_endpoints.console.scale import Scale, silences
from durable_endpoints.console.words import duration, roughly, size, tick
from durable_endpoints.records import Entry, Kind

BEGAN_MS = 1_800_000_000_000
S = 1_000_000  # microseconds


class Writer:
    """Writes a journal, times in milliseconds since it began."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.add(0, Kind.STARTED)

    def add(
        self, at_ms: int, kind: Kind, key: str = "", payload: bytes = b"", took_ms: float = 0
    ) -> Writer:
        seq = len(self.entries)
        took_us = int(took_ms * 1000)
        self.entries.append(Entry(seq, kind, key, 0, BEGAN_MS + at_ms, took_us, b"", payload))
        return self

    def step(self, begin_ms: int, end_ms: int, key: str, kind: Kind = Kind.STEP) -> Writer:
        return self.add(end_ms, kind, key, b"1", end_ms - begin_ms)

    @property
    def digest(self) -> Digest:
        digest = Digest()
        digest.feed(self.entries)
        return digest


def rows_of(writer: Writer, now_ms: int | None = None) -> list[tuple[int, str]]:
    drawing = draw(writer.digest, None if now_ms is None else now_ms * 1000)
    return [(row.depth, row.label) for row in drawing.rows]


def test_a_step_stands_where_it_was() -> None:
    writer = Writer().step(100, 200, "0 search").step(200, 400, "1 read").add(400, Kind.COMPLETED)
    drawing = draw(writer.digest, None)
    bars = [(row.label, row.bars[0].x, row.bars[0].width) for row in drawing.rows]
    assert bars == [("search", 25.0, 25.0), ("read", 50.0, 50.0)]
    assert [row.badges for row in drawing.rows] == [["100 ms"], ["200 ms"]]
    assert drawing.steps == 2
    assert not drawing.folds


def test_feeding_in_pieces_and_twice_is_the_same() -> None:
    writer = Writer().step(0, 10, "0 a").step(10, 20, "1 b")
    digest = Digest()
    digest.feed(writer.entries[:2])
    digest.feed(writer.entries)
    assert [span.name for span in digest.spans] == ["a", "b"]
    assert digest.next_seq == 3


def test_branches_stand_together_below_the_moment_they_began() -> None:
    writer = (
        Writer()
        .step(0, 10, "0 plan")
        .step(11, 30, "fetch.10/0 read")
        .step(10, 31, "fetch.2/0 read")
        .step(30, 40, "fetch.10/1 score")
        .step(31, 45, "fetch.2/1 score")
        .step(50, 60, "1 merge")
    )
    assert rows_of(writer) == [
        (0, "plan"),
        (0, "fetch 3"),
        (1, "read"),
        (1, "score"),
        (0, "fetch 11"),
        (1, "read"),
        (1, "score"),
        (0, "merge"),
    ]


def test_a_run_that_has_only_begun_or_not_even_that() -> None:
    assert rows_of(Writer()) == []
    assert draw(Digest(), 5000).rows == []
    assert rows_of(Writer().step(0, 5, "work.0/0 alone")) == [(0, "alone")]


def test_branches_within_branches() -> None:
    writer = (
        Writer()
        .step(0, 10, "a.0/b.0/0 deep")
        .step(0, 12, "a.0/b.1/0 deep")
        .step(0, 5, "a.1/0 flat")
    )
    labels = rows_of(writer)
    assert (1, "b 1") in labels
    assert (2, "deep") in labels
    assert (0, "flat") not in labels


def test_attempts_failures_and_streams() -> None:
    failure = orjson.dumps({"type": "builtins:ValueError", "message": "no"})
    writer = (
        Writer()
        .add(10, Kind.ATTEMPT, "0 flaky", b"{}", took_ms=10)
        .add(30, Kind.ATTEMPT, "0 flaky", b"{}", took_ms=5)
        .step(0, 50, "0 flaky")
        .step(50, 60, "1 bad", Kind.STEP_FAILED)
        .add(60, Kind.STREAM, "2 answer", b"auto")
        .add(61, Kind.ITEM, "2 answer", b'"a"')
        .add(62, Kind.ITEM, "2 answer", b'"b"')
        .add(65, Kind.STREAM_END, "2 answer", b"truncated", took_ms=5)
        .add(66, Kind.INTENT, "3 pay", b"")
        .step(66, 70, "3 pay")
        .add(70, Kind.FAILED, payload=failure)
    )
    flaky, bad, answer, pay = draw(writer.digest, None).rows
    assert [bar.style for bar in flaky.bars] == ["step", "try", "try"]
    assert "attempt 3" in flaky.badges
    assert bad.failed
    assert answer.badges == ["5 ms", "2 items", "truncated"]
    assert pay.sort == "effect"
    assert writer.digest.groups["bad"].failed == 1


def test_a_recovery_is_seen_and_the_time_between_is_folded() -> None:
    writer = (
        Writer()
        .add(0, Kind.HEAD, payload=b"{}")
        .add(5, Kind.STREAM, "0 answer", b"restart")
        .add(10, Kind.ITEM, "0 answer", b'"a"')
        .add(10, Kind.CHUNK, payload=b"data: a\n\n")
        .add(60_000, Kind.REWIND, payload=b'{"to":0}')
        .add(60_000, Kind.RESET, "0 answer")
        .add(60_005, Kind.ITEM, "0 answer", b'"a"')
        .add(60_010, Kind.STREAM_END, "0 answer", took_ms=10)
    )
    digest = writer.digest
    drawing = draw(digest, None)
    assert [mark.sort for _, mark in drawing.marks] == ["rewind", "recovery"]
    assert digest.rewinds == [(0, 2)]
    assert [text for _, _, text in drawing.folds] == ["59 s"]
    (row,) = drawing.rows
    assert [bar.style for bar in row.bars] == ["stream", "try"]
    assert row.bars[0].x > row.bars[1].x + row.bars[1].width
    assert "recovered" in row.badges


def test_a_wait_of_days_hides_no_step() -> None:
    day = 86_400_000
    writer = (
        Writer()
        .step(0, 100, "0 search")
        .add(100, Kind.WAIT, "1 approval:refund", b"{}")
        .add(3 * day, Kind.SIGNAL, "refund", b"{}")
        .add(3 * day, Kind.RECEIVED, "1 approval:refund", b"{}")
        .step(3 * day, 3 * day + 100, "2 pay")
    )
    drawing = draw(writer.digest, None)
    search, wait, pay = drawing.rows
    assert search.bars[0].width > 40
    assert pay.bars[0].width > 40
    assert wait.bars[0].style == "wait"
    assert drawing.folds[0][2] == "2 d 23 h"
    assert (drawing.steps, drawing.waits) == (2, 1)


def test_what_is_open_reaches_to_now() -> None:
    writer = Writer().step(0, 500, "0 a").add(500, Kind.STREAM, "1 answer", b"auto")
    going = draw(writer.digest, 1000 * 1000).rows[1]
    assert going.open
    assert going.badges[0] == "500 ms so far"
    assert going.bars[0].x + going.bars[0].width == pytest.approx(100)
    cut = draw(writer.add(700, Kind.CANCEL).digest, None).rows[1]
    assert cut.badges[0] == "200 ms, cut off"


def test_many_steps_are_summed_and_zooming_in_finds_them_again() -> None:
    writer = Writer()
    for number in range(10_000):
        writer.step(number, number + 1, f"{number} {('fetch', 'parse')[number % 2]}")
    writer.step(10_000, 10_001, "10000 last", Kind.STEP_FAILED)
    digest = writer.digest
    drawing = draw(digest, None)
    assert drawing.summed
    assert [row.label for row in drawing.rows] == ["fetch", "parse", "last"]
    assert drawing.rows[2].failed_path
    assert len(drawing.rows[0].path) < 8_000
    near = draw(digest, None, (5_000_000, 5_050_000))
    assert not near.summed
    assert 50 <= len(near.rows) <= 54
    assert near.zoomed
    assert set(zooms(near)) == {"in", "out", "earlier", "later"}
    assert zooms(near)["out"] == (4_975_000, 5_075_000)


def test_more_steps_than_are_kept_are_counted() -> None:
    writer = Writer()
    for number in range(SPANS_MAX + 10):
        writer.step(number, number, f"{number} a")
    digest = writer.digest
    assert len(digest.spans) == SPANS_MAX
    assert digest.left_out == 10
    assert digest.groups["a"].count == SPANS_MAX + 10


def test_a_scale_without_folds_is_straight() -> None:
    scale = Scale(0, 10 * S)
    assert scale.at(5 * S) == pytest.approx(0.5)
    assert scale.at(-1) == 0
    assert scale.at(11 * S) == 1
    assert scale.time(0.25) == pytest.approx(2.5 * S)
    assert [at for _, at in scale.ticks()] == [0, 2 * S, 4 * S, 6 * S, 8 * S, 10 * S]


@pytest.mark.parametrize("gaps", [[], [(1, 9 * S)], [(S, 2 * S), (3 * S, 9 * S)], [(0, 10 * S)]])
def test_a_scale_is_monotonous_and_turns_back(gaps: list[tuple[int, int]]) -> None:
    scale = Scale(0, 10 * S, gaps)
    places = [scale.at(at) for at in range(0, 10 * S + 1, S // 10)]
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == 1
    for place in (0.1, 0.5, 0.9):
        assert scale.at(scale.time(place)) == pytest.approx(place, abs=0.001)


def test_silences_lie_between_what_is_busy() -> None:
    assert silences([(2, 4), (3, 5), (7, 7)], 10) == [(0, 2), (5, 7), (7, 10)]
    assert silences([(0, 10)], 10) == []


def test_paths() -> None:
    assert histogram([0, 1, 2], 10) == "M1 10v-5.00h1v5.00zM2 10v-10.00h1v10.00z"
    assert histogram([0, 0], 10) == ""
    line, area = sparkline([0, 1], 10)
    assert line == "M0 10.00L1 0.74"
    assert area == line + "V10H0Z"
    assert sparkline([1], 10) == ("", "")


def test_words() -> None:
    assert [duration(ms) for ms in (0, 0.02, 5, 1500, 61_000, 7_200_000, 300_000_000)] == [
        "0 ms", "20 µs", "5 ms", "1.5 s", "1 min 1 s", "2 h", "3 days",
    ]  # fmt: skip
    assert [roughly(ms) for ms in (10, 1000, 90_000, 3_600_000, 90_000_000)] == [
        "now", "1 s", "1 min", "1 h", "1 d 1 h",
    ]  # fmt: skip
    assert [size(n) for n in (10, 2048, 3 << 20)] == ["10 B", "2.0 KiB", "3.0 MiB"]
    assert tick(5000, 1000) == "5 ms"
    assert tick(65 * S, S) == "1:05"
    assert tick(65 * S + S // 2, S // 2) == "1:05.5"
    assert tick(3_725_010_000, 10_000) == "1:02:05.010"
