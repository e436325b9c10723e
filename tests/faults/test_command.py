"""The command of the fault matrix: what it says on its way, and where it keeps things."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults.matrix import Done, Row


def slow(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Keep something, and be through with three trials at a time."""
    (place / "kept").write_text(str(seed))
    for over in range(3, trials, 3):
        done(over)
    done(trials)
    return []


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    words = ["faults", "--rows", "F0", "--seed", "7"]
    monkeypatch.setattr(command, "ROWS", (Row("F0", "nothing", "nothing", slow, 40, 40),))
    monkeypatch.setattr(sys, "argv", words)
    yield words
    logging.disable(logging.NOTSET)


def test_a_long_row_says_how_far_it_is(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main() == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("F0: ")]
    told = [*(f"{over} of 40" for over in (6, 9, 12, 18, 21, 24, 30, 33, 36)), "40"]
    assert [line.partition(" trials, ")[0] for line in said] == [f"F0: {one}" for one in told]


def test_what_is_kept_is_never_written_over(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv += ["--keep", str(tmp_path)]
    assert command.main() == 0
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "give another directory, or another --seed" in capsys.readouterr().err
    argv += ["--seed", "8"]
    assert command.main() == 0
    assert [(tmp_path / seed / "F0" / "kept").read_text() for seed in "78"] == ["7", "8"]
