"""Power cuts at every moment, with any of the unsynced writes lost, torn or reordered."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("apsw", reason="the recording disk needs apsw: pip install apsw")

from tests.faults.crash_states import (
    Model,
    judge,
    read,
    read_as_a_start_does,
    record,
    weakened,
)
from tests.faults.recording import Recorder, State, states

pytestmark = pytest.mark.timeout(120)
STATES = 5000
SMALL = 8  # writes: of so many unsynced ones, each subset
STARTS = 60
CONTROLS = 400


@pytest.fixture
def cut() -> Iterator[Path]:
    """A place for thousands of small files, in memory where there is such a one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        yield Path(place)


def found(
    recorder: Recorder, model: Model, place: Path, most: int, seed: int = 0, whole: int = 0
) -> tuple[Counter[str], list[State]]:
    """Judge states; count what is wrong, and return them."""
    wrong: Counter[str] = Counter()
    seen = []
    for state in states(recorder, random.Random(seed), most, whole=whole):
        seen.append(state)
        verdict = judge(state, model, place, read)
        if verdict is not None:
            wrong[verdict.partition(":")[0]] += 1
            wrong[f"{verdict} (cut at step {state.at}, {state.lost} writes lost)"] += 1
    return wrong, seen


def test_no_power_cut_loses_what_was_acknowledged(tmp_path: Path, cut: Path) -> None:
    recorder, model = record(tmp_path / "made", 1, batches=14, size=6000)
    wrong, seen = found(recorder, model, cut, STATES)
    torn, lossy = sum(s.torn for s in seen), sum(s.lost > 0 for s in seen)
    print(f"{len(seen)} states of {len(recorder.steps)} steps; {torn} torn, {lossy} lossy")
    assert not wrong
    assert lossy > len(seen) // 2
    assert torn > len(seen) // 10


def test_every_state_of_a_small_journal(tmp_path: Path, cut: Path) -> None:
    """Three batches: whatever a disk could have kept of few writes, and some of what of many."""
    total: Counter[str] = Counter()
    for seed in range(3):
        recorder, model = record(tmp_path / f"made{seed}", seed, batches=3, size=40)
        wrong, seen = found(recorder, model, cut, 400, seed, whole=SMALL)
        total += wrong
        print(f"{len(seen)} states")
    assert not total


def test_a_start_on_what_a_power_cut_left(tmp_path: Path, cut: Path) -> None:
    """The same through the store's own start, on Python's SQLite."""
    recorder, model = record(tmp_path / "made", 2, batches=12, size=3000)
    chance = random.Random(2)
    some = chance.sample(list(states(recorder, chance, STATES)), STARTS)
    wrong = [
        verdict
        for state in some
        if (verdict := judge(
            state, model, cut, lambda file: asyncio.run(read_as_a_start_does(file))
        ))
    ]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("synchronous", ["normal", "off"])
def test_a_store_that_syncs_too_little_is_found_out(
    synchronous: str, tmp_path: Path, cut: Path
) -> None:
    """The tests above prove nothing if a lost commit would not show."""
    with weakened(synchronous):
        recorder, model = record(tmp_path / "made", 1, batches=14, size=6000)
    wrong, _ = found(recorder, model, cut, CONTROLS)
    assert wrong["I1"] > CONTROLS // 10, wrong
