"""A run of the crash tier that missed something says so, in however many processes it ran."""

from __future__ import annotations

import pytest

from tests.support import sometimes
from tests.support.meeting import Met, missed

ALL = dict.fromkeys(sometimes.missing(sometimes.CRASH, {}), 1)
NAME = next(iter(ALL))
SOME = {name: 1 for name in ALL if name != NAME}


@pytest.mark.parametrize(
    ("met", "says"),
    [
        ([Met(True, frozenset(), ALL)], False),
        ([Met(True, frozenset(), SOME)], True),
        ([Met(True, frozenset("b"), SOME), Met(True, frozenset("a"), {NAME: 1})], False),
        ([Met(True, frozenset("b"), SOME), Met(True, frozenset("a"), {})], True),
        ([Met(True, frozenset("ab"), SOME), Met(True, frozenset("a"), {})], False),
        ([Met(False, frozenset(), SOME)], False),
        ([], False),
    ],
)
def test_what_nobody_met_is_named(met: list[Met], says: bool) -> None:
    said = missed(met)
    assert (NAME in said) == says
    assert bool(said) == says
