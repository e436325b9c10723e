from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from durable_endpoints.engine.cancellation import STAGES, Cancellation, Stage
from durable_endpoints.errors import IllegalTransition

ALL: tuple[Stage, ...] = get_args(Stage)


def test_the_table_names_every_stage() -> None:
    assert set(STAGES) == set(ALL)


@pytest.mark.parametrize(("old", "new"), list(product(ALL, ALL)))
def test_a_handler_goes_only_the_ways_of_the_table(old: Stage, new: Stage) -> None:
    cancellation = Cancellation()
    cancellation.stage = old
    if new in STAGES[old]:
        cancellation.move(new)
        assert cancellation.stage == new
    else:
        with pytest.raises(IllegalTransition, match=f"{old} cannot become {new}"):
            cancellation.move(new)
        assert cancellation.stage == old


def test_a_handler_that_has_ended_is_not_at_work_again() -> None:
    assert all("at work" not in following for following in STAGES.values())


def test_only_a_cancellation_that_nobody_was_told_of_is_pending() -> None:
    cancellation = Cancellation()
    assert not cancellation.pending
    cancellation.asked = True
    assert cancellation.pending
    cancellation.move("told")
    assert not cancellation.pending
