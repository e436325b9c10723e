"""Test suites that nobody here wrote, with every route durable: nothing changes.

`FOREIGN=all` runs all of their tests in both placements; without it, the most telling ones with
the middleware around the app. What differs on purpose is listed in `expected.toml`, and checked
both ways: a difference that is not listed fails, and so does one that is listed and is no more.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.foreign.suites import (
    FASTAPI,
    STARLETTE,
    NotFetched,
    Outcomes,
    Suite,
    differences,
    expected,
    fetched,
    interpreter,
    matches,
)

EVERYTHING = os.environ.get("FOREIGN") == "all"
MODES = ["outside", "inside"] if EVERYTHING else ["outside"]


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("suite", [STARLETTE, FASTAPI], ids=lambda suite: suite.project)
def test_nothing_changes(suite: Suite, tmp_path: Path) -> None:
    try:
        fetched(suite)
        interpreter(suite)
    except NotFetched as error:
        pytest.skip(f"{suite.name} cannot be fetched: {error}")
    running = [Outcomes(suite, mode, tmp_path, everything=EVERYTHING) for mode in ("off", *MODES)]
    bare, *durable = [outcomes.wait() for outcomes in running]
    passed = sum(test["outcome"] == "passed" for test in bare.values())
    print(f"{suite.name}: {passed} of {len(bare)} tests pass bare")
    assert passed > 0.98 * len(bare)
    for mode, outcomes in zip(MODES, durable, strict=True):
        judge(suite, mode, bare, differences(bare, outcomes))


def judge(suite: Suite, mode: str, bare: dict[str, object], found: dict[str, str]) -> None:
    listed = expected(suite, mode)
    print(f"{suite.name}, middleware {mode}: {len(found)} of {len(bare)} tests differ")
    new = {
        name: text
        for name, text in found.items()
        if not any(matches(name, pattern) for pattern in listed)
    }
    report = "\n\n".join(f"{name}: {text}" for name, text in new.items())
    assert not new, f"{len(new)} tests end otherwise, and nobody said that they may:\n{report}"
    stale = [
        name
        for name in bare
        if name not in found
        and any(must and matches(name, pattern) for pattern, must in listed.items())
    ]
    assert not stale, f"listed in expected.toml, but no longer different: {stale}"
    if EVERYTHING:
        lost = [pattern for pattern in listed if not any(matches(name, pattern) for name in bare)]
        assert not lost, f"listed in expected.toml, but there is no such test: {lost}"
