"""What 100,000 waiting runs cost a process: `python -m bench.suspended --help`.

The runs are put into the store directly, as a process would have left them; the server is started
on that, looked at while it idles, and then asked to wake some.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import Progress

from bench import machine, outcome, readback
from bench.contenders import Contender
from bench.load import BadAnswer
from bench.outcome import WORK
from bench.server import Server, call
from bench.stats import number, percentile
from durable_endpoints.frames import pack, pack_entry
from durable_endpoints.ids import new_run_id
from durable_endpoints.records import Frame, Kind, RunRecord, WaitRecord
from durable_endpoints.stores.sqlite import SQLiteStore

WAITING = Contender(
    "durable", "durable", "bench.apps.suspended:app", "the whole run", readback.nothing
)
DIRECTORY = WORK / "run" / "suspended"
MIB = 2**20
MEMORY_MIB_MAX, IDLE_CPU_PCT_MAX, LATE_S_MAX = 50.0, 1.0, 1.0
WAKE_FACTOR_MAX = 1.5  # waking one of many, against waking one of ten
_BATCH = 1000
_DAY_MS = 86_400_000
Figure = dict[str, Any]


def waiting_runs(count: int, seconds: int = 3600) -> Iterator[Frame]:
    """Give runs as a process leaves them: three in four wait for a signal, one for a day."""
    now_ms = time.time_ns() // 1_000_000
    payload = b'{"args":[],"kwargs":{}}'
    for n in range(count):
        sleeps = n % 4 == 3
        function = f"bench.apps.suspended:{'naps' if sleeps else 'asks'}"
        meta = orjson.dumps({"kind": "call", "function": function})
        given = orjson.dumps({"args": [seconds], "kwargs": {}}) if sleeps else payload
        until = now_ms + _DAY_MS + n if sleeps else None
        kind, name = ("timer", "sleep") if sleeps else ("signal", "go")
        label = "sleep" if sleeps else "signal:go"
        wanted = orjson.dumps({"kind": kind, "name": name, "until": until, "once": False})
        entries = [
            pack_entry(Kind.STARTED, b"", 0, now_ms, 0, meta, given),
            pack_entry(
                Kind.TIMER if sleeps else Kind.WAIT, f"0 {label}".encode(),
                0, now_ms, 0, b"", wanted,
            ),
        ]  # fmt: skip
        run_id = new_run_id(now_ms)
        shown = orjson.dumps([{"kind": kind, "name": name, "until": None}]).decode()
        record = RunRecord(run_id, function, "suspended", now_ms, now_ms)
        waits = () if sleeps else (WaitRecord(run_id, "0", "signal", "go", now_ms),)
        yield Frame(
            run_id, 1, 0, 2, 0, 0, 0, pack(entries), now_ms, "suspended", record,
            wake_at_ms=until, waiting=shown, waits=waits,
        )  # fmt: skip


async def fill(database: Path, count: int) -> list[str]:
    """Put waiting runs into a new database; returns the ids of some that wait for a signal."""
    store = SQLiteStore(database)
    await store.open()
    signalled: list[str] = []
    try:
        frames = list(waiting_runs(count))
        for at in range(0, count, _BATCH):
            await store.append(frames[at : at + _BATCH])
        signalled = [frame.run_id for frame in frames if frame.waits]
    finally:
        await store.close()
    step = max(1, len(signalled) // 400)
    return signalled[::step][:400]


def idle(server: Server, seconds: float) -> Figure:
    """Return what a server holds and uses while nobody asks it for anything."""
    time.sleep(2)  # its start is over
    began, cpu = time.monotonic(), server.cpu_seconds()
    time.sleep(seconds)
    took = time.monotonic() - began
    return {
        "rss_mib": server.rss_bytes() / MIB,
        "cpu_pct": 100 * (server.cpu_seconds() - cpu) / took,
    }


def wake(server: Server, runs: list[str]) -> Figure:
    """Signal suspended runs one after another; the answer comes when the run is back at its wait.

    Returns milliseconds to the 202, and to the run's end as its row says.
    """
    taken: list[float] = []
    for run_id in runs:
        began = time.perf_counter()
        path = f"/_durable/runs/{run_id}/signals/go"
        status, answer, _ = call(server.port, "POST", path, body=b'"now"')
        taken.append((time.perf_counter() - began) * 1000)
        if status != 202:
            raise BadAnswer(f"signal: {status} {answer[:300]!r}; {server.tail()}")
    return {"median_ms": statistics.median(taken), "p99_ms": percentile(taken, 0.99)}


def lateness(server: Server, runs: int, seconds: float) -> float:
    """Return by how many seconds the latest of some timers was late."""
    body = json.dumps({"runs": runs, "seconds": seconds}).encode()
    status, answer, _ = call(server.port, "POST", "/nap", body=body)
    if status != 200:
        raise BadAnswer(f"nap: {status} {answer[:300]!r}; {server.tail()}")
    time.sleep(seconds)
    late = 0.0
    for run_id in json.loads(answer)["runs"]:
        late = max(late, _late_s(server, run_id))
    return late


def _late_s(server: Server, run_id: str) -> float:
    until = time.monotonic() + 60
    while True:
        _, answer, _ = call(server.port, "GET", f"/_durable/runs/{run_id}/journal")
        entries = {entry["kind"]: entry for entry in json.loads(answer)["entries"]}
        if "fired" in entries:
            wanted: float = json.loads(entries["timer"]["payload"])["until"] / 1000
            return _seconds(entries["fired"]["at"]) - wanted
        if time.monotonic() > until:
            raise BadAnswer(f"run {run_id} does not wake: {server.tail()}")
        time.sleep(0.02)


def _seconds(shown: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(shown).timestamp()


def stored(count: int, seconds: float, wakes: int) -> Figure:
    """Measure a server that was started on so many suspended runs."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    began = time.monotonic()
    runs = asyncio.run(fill(DIRECTORY / "durable.db", count))
    filled_s = time.monotonic() - began
    with Server(WAITING, DIRECTORY) as server:
        ready_s = server.wait_ready()
        figure = idle(server, seconds)
        figure |= wake(server, runs[:wakes])
        figure["late_s"] = lateness(server, 20, 2.0)
        figure["rss_after_mib"] = server.rss_bytes() / MIB
        server.stop()
    return {"runs": count, "filled_s": filled_s, "ready_s": ready_s, **figure}


def begun(count: int, seconds: float) -> Figure:
    """Measure a server that has begun so many runs itself, which then left its memory."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    with Server(WAITING, DIRECTORY) as server:
        server.wait_ready()
        _begin(server, 400)  # what the first runs bring into memory is no growth
        before = idle(server, 1)
        began = time.monotonic()
        _begin(server, count)
        took = time.monotonic() - began
        after = idle(server, seconds)
        server.stop()
    return {
        "runs": count, "begun_s": took, "cpu_pct": after["cpu_pct"],
        "growth_mib": after["rss_mib"] - before["rss_mib"],
    }  # fmt: skip


def _begin(server: Server, count: int) -> None:
    body = json.dumps({"runs": count}).encode()
    status, answer, _ = call(server.port, "POST", "/begin", body=body, timeout=3600)
    if status != 200:
        raise BadAnswer(f"begin: {status} {answer[:300]!r}; {server.tail()}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.suspended", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--begun", type=int, default=20_000, help="runs begun by the server itself")
    parser.add_argument("--seconds", type=float, default=10, help="of idling")
    parser.add_argument("--wakes", type=int, default=200)
    outcome.add_options(parser, "a tenth of it")
    options = parser.parse_args(arguments)
    if options.quick:
        options.runs, options.begun = options.runs // 10, options.begun // 10
        options.seconds, options.wakes = 2.0, options.wakes // 4
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ten suspended runs", total=3)
        few = stored(10, options.seconds, 7)
        progress.update(task, advance=1, description=f"{options.runs:,} suspended runs")
        many = stored(options.runs, options.seconds, options.wakes)
        progress.update(task, advance=1, description=f"{options.begun:,} runs begun here")
        own = begun(options.begun, options.seconds)
        progress.advance(task)
    result = {
        "kind": "suspended", "machine": machine.describe(WORK), "few": few, "many": many,
        "begun": own, "growth_mib": many["rss_mib"] - few["rss_mib"],
    }  # fmt: skip
    outcome.keep(options, result)
    show(result, console)
    if broken := missed(result):
        raise SystemExit("\n".join(broken))


def show(result: Figure, console: Console) -> None:
    """Print the figures."""
    few, many, own = result["few"], result["many"], result["begun"]
    for what, one, other in (
        ("resident memory, idle, MiB", few["rss_mib"], many["rss_mib"]),
        ("CPU, idle, %", few["cpu_pct"], many["cpu_pct"]),
        ("waking one by a signal, median ms", few["median_ms"], many["median_ms"]),
        ("… p99 ms", few["p99_ms"], many["p99_ms"]),
        ("latest timer, s", few["late_s"], many["late_s"]),
        ("start, s", few["ready_s"], many["ready_s"]),
    ):
        console.print(f"{what:36} {number(one):>10} with 10   {number(other):>10} with "
                      f"{many['runs']:,}")  # fmt: skip
    console.print(f"growth over an idle process: {number(result['growth_mib'])} MiB; "
                  f"after {own['runs']:,} runs begun by the process itself: "
                  f"{number(own['growth_mib'])} MiB")  # fmt: skip


def missed(result: Figure) -> list[str]:
    """Return the promises that these figures break."""
    few, many = result["few"], result["many"]
    checks = (
        (result["growth_mib"] < MEMORY_MIB_MAX, "memory"),
        (result["begun"]["growth_mib"] < MEMORY_MIB_MAX, "memory of runs begun here"),
        (many["cpu_pct"] < IDLE_CPU_PCT_MAX, "idle CPU"),
        (many["median_ms"] < WAKE_FACTOR_MAX * few["median_ms"] + 1, "waking one"),
        (many["late_s"] < LATE_S_MAX, "timers"),
    )
    return [f"missed: {what}" for fine, what in checks if not fine]


if __name__ == "__main__":
    main()
