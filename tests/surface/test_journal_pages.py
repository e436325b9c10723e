"""From where on a journal is asked for."""

from __future__ import annotations

import httpx
import pytest

from tests.surface.wire import is_problem, run_of, until_status


@pytest.mark.parametrize("after", ["-2", "-7", "-999999999999"])
def test_nothing_is_before_the_first_entry(client: httpx.Client, after: str) -> None:
    run_id = run_of(client.get("/status/200"))
    until_status(client, run_id, "completed")
    path = f"/_durable/runs/{run_id}/journal"
    whole = client.get(path).json()
    assert client.get(path, params={"after": "-1"}).json() == whole
    answer = client.get(path, params={"after": after})
    assert "-1 or more" in is_problem(answer, 400, "malformed-number")["detail"]


def test_behind_the_last_entry_is_nothing(client: httpx.Client) -> None:
    run_id = run_of(client.get("/status/200"))
    last = until_status(client, run_id, "completed")["entries"] - 1
    for after in (last, 2**31, 999_999_999_999):
        answer = client.get(f"/_durable/runs/{run_id}/journal", params={"after": after})
        assert answer.json() == {"entries": [], "next": None}
