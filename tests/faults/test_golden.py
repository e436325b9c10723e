"""Deploys: a store that an earlier release left in the middle of its work is read, and goes on.

Each `golden/NAME.db` was made by release NAME, by `python -m tests.faults.golden NAME`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints import Engine, RunFailed, SQLiteStore
from durable_endpoints.clock import SystemClock
from durable_endpoints.engine import functions
from durable_endpoints.engine.functions import Run
from durable_endpoints.records import Kind
from durable_endpoints.stores.protocol import Query
from tests.faults.golden import app

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.db"))
HOUR_MS = 3_600_000
TOKENS = [f"token {number}" for number in range(6)]
AGAIN = [f"again {number}" for number in range(6)]
PATIENCE_S = 30


class LaterClock(SystemClock):
    """The deploy took two hours: what was to wait one is due."""

    def now_ms(self) -> int:
        return super().now_ms() + 2 * HOUR_MS


# The numbers that are in people's files. A new kind gets one that was never used, and a place here.
ON_DISK = {
    "STARTED": 1, "STEP": 2, "STEP_FAILED": 3, "STREAM": 4, "ITEM": 5, "STREAM_END": 6, "RESET": 7,
    "VALUE": 8, "TIMER": 9, "FIRED": 10, "WAIT": 11, "SIGNAL": 12, "RECEIVED": 13, "INTENT": 14,
    "ATTEMPT": 15, "HEAD": 16, "CHUNK": 17, "EMIT": 18, "REWIND": 19, "BODY_END": 20, "CANCEL": 24,
    "SPAWN": 25, "RETRY": 26, "UNDOABLE": 27, "PATCH": 28, "SHARED": 29, "GAVE_UP": 30,
    "LABEL": 31, "COMPLETED": 32, "FAILED": 33, "CANCELLED": 34,
}  # fmt: skip


def test_numbers_that_are_on_disk_stay() -> None:
    assert {kind.name: int(kind) for kind in Kind} == ON_DISK


def test_there_is_one() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_store_of_an_earlier_release_goes_on(name: str, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / f"{name}.db", tmp_path / "durable.db")
    known: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    app.MAKING.clear()
    asyncio.run(_go_on(tmp_path / "durable.db", known))


async def _go_on(database: Path, known: dict[str, Any]) -> None:
    left: list[str] = []
    engine = Engine(SQLiteStore(database), clock=LaterClock(), on_failure=left.append)
    await engine.open()
    try:
        async with asyncio.timeout(PATIENCE_S):
            runs = {name: Run(engine, await engine.observe(one["run_id"]))
                    for name, one in known.items()}  # fmt: skip
            for name, one in known.items():
                await _holds(engine, runs[name], one)
            transport = httpx.ASGITransport(app.web(engine))
            async with httpx.AsyncClient(transport=transport, base_url="http://golden") as http:
                # The first request to the app begins the recovery.
                await _answered(http, known["page"]["run_id"])
                await _ends(engine, runs, known)
            for name, one in known.items():
                await _holds(engine, runs[name], one)
    finally:
        await engine.close()
    assert not left


async def _holds(engine: Engine, run: Run, one: dict[str, Any]) -> None:
    """Everything that was shown then is shown now: offsets, hashes, bytes (I4, I5)."""
    stored = await engine.store.read(run.id, limit_bytes=1 << 30)
    assert sum(frame.entries for frame in stored) >= one["entries"]
    live = await engine.observe(run.id)
    events = []
    if one["events"]:
        reader = functions.Reader(engine.store, live, 0)
        while len(events) < len(one["events"]):
            events += await reader.read() or []
    shown = [[e.offset, f"{e.crc:08x}", base64.b64encode(e.payload).decode()] for e in events]
    assert shown[: len(one["events"])] == one["events"]


async def _answered(http: httpx.AsyncClient, run_id: str) -> None:
    """The same request again gets the answer that it had begun to get, to its end (I7)."""
    answer = await http.post(**app.REQUEST)
    assert answer.status_code == 200
    assert answer.headers["durable-run-id"] == run_id
    assert answer.headers["x-made"] == "so"
    told = [line.removeprefix("data: ") for line in answer.text.splitlines()
            if line.startswith("data: ")]  # fmt: skip
    assert told == app.ANSWER


async def _ends(engine: Engine, runs: dict[str, Run], known: dict[str, Any]) -> None:
    """Every run comes to the end that it would have come to."""
    assert await runs["finished"].result() == known["finished"]["result"]
    with pytest.raises(RunFailed, match="it was to fail"):
        await runs["failed"].result()
    first, second, acted = await runs["cut_in_a_step"].result()
    assert (first["label"], second["label"], acted.partition(" ")[0]) == ("g", "h", "i")
    assert await runs["cut_in_a_stream"].result() == TOKENS
    assert await runs["cut_in_a_rewound_stream"].result() == AGAIN
    rewound = await functions.read_journal(engine.store, runs["cut_in_a_rewound_stream"].id)
    assert Kind.REWIND in {entry.kind for entry in rewound}
    await runs["asks"].signal("go", {"yes": True})
    assert await runs["asks"].result() == {"yes": True}
    assert await runs["sleeps"].result() == "slept"
    assert await runs["tries"].result() == "j"
    rows = await engine.store.list(Query(parent=runs["parent"].id))
    await Run(engine, await engine.observe(rows[0].run_id)).signal("child", "grown up")
    assert await runs["parent"].result() == "grown up"
