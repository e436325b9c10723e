"""`python -m tests.faults.golden NAME`: make a store by the code as it is, for later code to read.

Once for each release, before its tag: NAME is the release. The store is made by a process that
then ends without a word, as a crash does; what its log holds is folded into the one file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from durable_endpoints import Engine, SQLiteStore
from durable_endpoints.engine.functions import Run, start
from durable_endpoints.engine.reader import stored_events
from durable_endpoints.records import RunRecord
from durable_endpoints.stores.protocol import Query
from tests.faults.golden import app

HERE = Path(__file__).parent


async def _make(place: Path) -> None:
    app.MAKING.set()
    engine = Engine(SQLiteStore(place / "store.db"), suspend_grace_s=0)
    await engine.open()
    runs: dict[str, Run] = {}
    for function in app.RUNS:
        runs[function.__name__] = await start(engine, function)
    transport = httpx.ASGITransport(app.web(engine))
    http = httpx.AsyncClient(transport=transport, base_url="http://golden")
    asking = asyncio.create_task(http.post(**app.REQUEST))  # there will be no answer
    rows: list[RunRecord] = []
    while not rows:
        await asyncio.sleep(0.05)
        rows = [row for row in await engine.list(Query()) if "page" in row.name]
    assert not asking.done()
    runs["page"] = Run(engine, await engine.observe(rows[0].run_id))
    async with asyncio.timeout(30):
        while not all(await asyncio.gather(*(_settled(engine, run) for run in runs.values()))):
            await asyncio.sleep(0.05)
    known = {name: await _told(engine, run) for name, run in runs.items()}
    (place / "known.json").write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    os._exit(0)


async def _settled(engine: Engine, run: Run) -> bool:
    """Say whether a run is at its end, suspended, or where it stops."""
    record = await engine.store.get(run.id)
    assert record is not None
    if record.status != "running":
        return True
    if ":cut_" not in record.name and "page" not in record.name:
        return False
    before = record.last_seq
    await asyncio.sleep(0.2)
    record = await engine.store.get(run.id)
    return record is not None and record.last_seq == before > 1


async def _told(engine: Engine, run: Run) -> dict[str, Any]:
    record = await engine.store.get(run.id)
    assert record is not None
    live = await engine.observe(run.id)
    events = await stored_events(engine.store, live, 0)
    return {
        "run_id": run.id,
        "status": record.status,
        "entries": record.last_seq + 1,
        "events": [[e.offset, f"{e.crc:08x}", base64.b64encode(e.payload).decode()]
                   for e in events],
        "result": await run.result() if record.status == "completed" else None,
    }  # fmt: skip


def main() -> int:
    """Make one in a process of its own, and keep it."""
    if sys.argv[1] == "--here":
        asyncio.run(_make(Path(sys.argv[2])))
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        command = [sys.executable, "-m", "tests.faults.golden", "--here", made]
        subprocess.run(command, check=True)
        with closing(sqlite3.connect(place / "store.db")) as db:
            db.execute("pragma wal_checkpoint(truncate)")
            db.execute("pragma journal_mode = delete")
            db.execute("vacuum")
        (HERE / f"{name}.db").write_bytes((place / "store.db").read_bytes())
        (HERE / f"{name}.json").write_bytes((place / "known.json").read_bytes())
    print(f"{HERE / name}.db, .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
