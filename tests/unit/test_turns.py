"""While a commit is on its way threads take short turns; before and after it as they were."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints.engine.engine import Engine
from durable_endpoints.limits import SWITCH_US
from durable_endpoints.stores import statements
from durable_endpoints.stores.sqlite import SQLiteStore
from durable_endpoints.stores.turns import Turns

DEFAULT_US = 5_000


@pytest.fixture(autouse=True)
def _default() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(DEFAULT_US / 1e6)
    yield
    sys.setswitchinterval(before)


def interval_us() -> int:
    return round(sys.getswitchinterval() * 1e6)


def test_as_long_as_one_of_many_asks() -> None:
    turns = Turns()
    with turns:
        with turns:
            assert interval_us() == SWITCH_US
        assert interval_us() == SWITCH_US
    assert interval_us() == DEFAULT_US


def test_also_behind_a_failure() -> None:
    with pytest.raises(OSError, match="gone"), Turns():
        raise OSError("gone")
    assert interval_us() == DEFAULT_US


@pytest.mark.parametrize("mine_us", [SWITCH_US // 2, SWITCH_US])
def test_an_interval_that_is_short_already_stays(mine_us: int) -> None:
    sys.setswitchinterval(mine_us / 1e6)
    with Turns():
        assert interval_us() == mine_us
    assert interval_us() == mine_us


def test_what_somebody_else_sets_meanwhile_stays() -> None:
    turns = Turns()
    with turns:
        sys.setswitchinterval(0.001)
    assert interval_us() == 1_000
    with turns:
        assert interval_us() == SWITCH_US
    assert interval_us() == 1_000


def test_while_a_batch_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    write = statements.append

    def watched(*args: Any) -> Any:
        seen.append(interval_us())
        return write(*args)

    async def scenario() -> None:
        engine = Engine(SQLiteStore(tmp_path / "durable.db"))
        await engine.open()
        monkeypatch.setattr(statements, "append", watched)
        run = engine.begin("any", version="1", args=b"{}", payload=b"")
        await run.durable(0)
        assert interval_us() == DEFAULT_US
        await engine.close()

    asyncio.run(scenario())
    assert seen == [SWITCH_US]
