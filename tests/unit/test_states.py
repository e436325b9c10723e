from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from durable_endpoints import states
from durable_endpoints.errors import IllegalTransition
from durable_endpoints.records import Status

STATUSES: tuple[Status, ...] = get_args(Status)


def test_the_table_names_every_status() -> None:
    assert set(states.TRANSITIONS) == set(STATUSES)


@pytest.mark.parametrize(("old", "new"), list(product(STATUSES, STATUSES)))
def test_i15_nothing_follows_a_terminal_status(old: Status, new: Status) -> None:
    allowed = new in states.TRANSITIONS[old] or (new == old and old not in states.TERMINAL)
    if allowed:
        assert states.move(old, new) == new
        assert old not in states.TERMINAL
    else:
        with pytest.raises(IllegalTransition):
            states.move(old, new)
