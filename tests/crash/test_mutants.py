"""The broken engines of mutant_list.py: all can still be made, and, with --mutants, some are tried.

All of them: `python -m tests.crash.mutants`.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.crash import mutants
from tests.crash.mutant_list import MUTANTS, Mutant, Schedules
from tests.crash.mutants import CAUGHT, ROOT, TIMED_OUT, broken, check_sound, try_mutant

# Those that a test within one process catches at once.
QUICK = ("M1", "M5", "M6", "M9", "M10", "M14", "M19", "M28", "M31", "M33", "M35", "M38")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_place_is_still_there(mutant: Mutant) -> None:
    """A place that has moved would be a mutant that nobody tries any more."""
    for path, source in broken(ROOT, mutant).items():
        assert source != path.read_text()
    for test in mutant.tests:
        file, _, name = ("", "", "") if isinstance(test, Schedules) else test.partition("::")
        assert (ROOT / file).exists()
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_a_place_that_has_moved_is_an_error(tmp_path: Path) -> None:
    made = tmp_path / "durable_endpoints" / MUTANTS[0].patches[0].file
    made.parent.mkdir(parents=True)
    made.write_text("nothing of it\n")
    with pytest.raises(ValueError, match="0 times"):
        broken(tmp_path, MUTANTS[0])


def test_tests_without_an_end_catch_only_what_is_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> NoReturn:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(mutants, "copy_tree", lambda place: None)
    monkeypatch.setattr(mutants, "broken", lambda place, mutant: {})
    monkeypatch.setattr(subprocess, "run", run)
    verdict = try_mutant(MUTANTS[0])
    assert (verdict.word, verdict.good) == (TIMED_OUT, False)
    assert try_mutant(replace(MUTANTS[0], hangs=True)).word == CAUGHT
    assert "no end within" in str(check_sound(MUTANTS[:1]))


def test_what_breaks_postgresql_is_tried_on_it() -> None:
    """Where there is none, others of its tests would pass, and it would be taken for a survivor."""
    for mutant in MUTANTS:
        if any("postgres" in patch.file for patch in mutant.patches):
            assert all("postgres" in str(test) for test in mutant.tests), mutant.name


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.name in QUICK],
                         ids=lambda mutant: mutant.name)  # fmt: skip
def test_it_is_caught(mutant: Mutant, pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("--mutants"):
        pytest.skip("only with --mutants")
    verdict = try_mutant(mutant)
    assert verdict.word == CAUGHT, verdict
