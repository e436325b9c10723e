"""What grows, and what must not: `python -m bench.scale --help`."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

from bench import machine, outcome, readback, readers
from bench.contenders import Contender
from bench.load import BadAnswer, measure, post
from bench.outcome import WORK
from bench.phases import serving
from bench.server import Server, call

LONG = Contender("durable", "durable", "bench.apps.long:app", "the whole run", readback.nothing)
DIRECTORY = WORK / "run" / "scale"
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """How far each figure is taken."""

    marks: tuple[int, ...] = (10, 1_000, 50_000)
    repeats: int = 3
    journals: tuple[int, ...] = (1, 100, 1_000, 10_000, 50_000)
    stored_runs: int = 100_000
    measured_runs: int = 2_000
    readers: tuple[int, ...] = (1, 10, 100, 1_000)


QUICK = Sizes((10, 1_000, 5_000), 1, (1, 1_000, 5_000), 5_000, 300, (1, 100))
FULL = Sizes()
Figure = dict[str, Any]


def _post_json(server: Server, path: str, asked: dict[str, Any], timeout: float = 120) -> Any:
    body = json.dumps(asked).encode()
    headers = {"content-type": "application/json"}
    status, answer, _ = call(server.port, "POST", path, body=body, timeout=timeout, headers=headers)
    if status != 200:
        raise BadAnswer(f"{path} {asked}: status {status}: {answer[:300]!r}; {server.tail()}")
    return json.loads(answer)


def step_cost(sizes: Sizes) -> Figure:
    """How long the handler waits for its n-th step."""
    last = max(sizes.marks)
    found: list[dict[str, dict[str, float]]] = []
    with serving(LONG, DIRECTORY) as server:
        _post_json(server, "/long", {"steps": 200, "marks": [10]})
        for _ in range(sizes.repeats):
            asked = {"steps": last + 300, "marks": sizes.marks}
            found.append(_post_json(server, "/long", asked))
    points = [
        {
            "at": mark,
            "value": statistics.median(f[str(mark)]["median_us"] for f in found),
            "mean": statistics.median(f[str(mark)]["mean_us"] for f in found),
        }
        for mark in sizes.marks
    ]
    return {"what": "cost of the n-th step (median around it)", "unit": "µs", "points": points}


def replay(sizes: Sizes) -> Figure:
    """How long a run takes to be back where it was killed, behind n recorded steps."""
    points = []
    for steps in sizes.journals:
        inside, loaded = zip(*(_replay_once(steps) for _ in range(sizes.repeats)), strict=True)
        points.append(
            {
                "at": steps,
                "value": statistics.median(loaded),
                "handler_ms": statistics.median(inside),
            }
        )
    what = "replay of n recorded steps (app loaded → where it was killed)"
    return {"what": what, "unit": "ms", "points": points}


def _replay_once(steps: int) -> tuple[float, float]:
    """Return milliseconds: handler entered -> replayed, app's code loaded -> replayed."""
    held, again = DIRECTORY / "held", DIRECTORY / "again"
    with serving(LONG, DIRECTORY) as server:
        body = json.dumps({"steps": steps}).encode()
        headers = {"content-type": "application/json", "prefer": "respond-async"}
        status, answer, _ = call(server.port, "POST", "/held", body=body, headers=headers)
        if status != 202:
            raise BadAnswer(f"respond-async: status {status}: {answer[:300]!r}")
        _wait(held, server)
    with Server(LONG, DIRECTORY) as server:
        server.wait_ready()
        _wait(again, server)
        loaded, entered, replayed = (int(word) for word in again.read_text().split())
        return (replayed - entered) / 1e6, (replayed - loaded) / 1e6


def _wait(path: Path, server: Server, limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > until:
            raise BadAnswer(f"{path.name} did not appear within {limit_s} s: {server.tail()}")
        time.sleep(0.001)


def bytes_per_run(sizes: Sizes) -> Figure:
    """What a run leaves on disk, log folded back."""
    points = []
    kinds: list[tuple[str, bytes, int]] = [
        ("20 steps of 200 B", post("/steps", b'{"steps":20}'), sizes.measured_runs),
        ("500 tokens", post("/chat", b'{"tokens":500,"pace_ms":0}'), sizes.measured_runs // 10),
    ]
    for name, request, runs in kinds:
        with serving(LONG, DIRECTORY) as server:
            _many(server, request, runs, lanes=1)
            server.stop()
        points.append({"at": name, "value": _database_bytes() / runs / 1024})
    return {"what": "database a run", "unit": "KiB", "points": points}


def _many(server: Server, request: bytes, runs: int, lanes: int) -> None:
    def check(status: int, body: bytes) -> None:
        if status != 200:
            raise BadAnswer(f"status {status}: {body[:300]!r}")

    measure(server.port, request, check, lanes=lanes, seconds=0, at_least=runs)


def _database_bytes() -> int:
    path = DIRECTORY / "durable.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    return path.stat().st_size


def start_up(sizes: Sizes) -> list[Figure]:
    """From process start to the first durable answer, with few and with many stored runs."""
    request = post("/steps", b'{"steps":2}')
    times: list[Figure] = []
    memory: list[Figure] = []
    with serving(LONG, DIRECTORY) as server:
        _post_json(server, "/steps", {"steps": 2})
        server.stop()
    times += [{"at": "1 stored run", "value": _start_ms(sizes, kill=False)}]
    shutil.rmtree(DIRECTORY)
    with Server(LONG, DIRECTORY) as server:
        server.wait_ready()
        _many(server, request, sizes.stored_runs // 10, lanes=32)
        memory.append({"at": sizes.stored_runs // 10, "value": server.rss_bytes() / MIB})
        _many(server, request, sizes.stored_runs - sizes.stored_runs // 10, lanes=32)
        memory.append({"at": sizes.stored_runs, "value": server.rss_bytes() / MIB})
        server.stop()
    many = f"{sizes.stored_runs:,}"
    times.append({"at": many, "value": _start_ms(sizes, kill=False)})
    times.append({"at": f"{many} after kill -9", "value": _start_ms(sizes, kill=True)})
    return [
        {"what": "process start to first durable answer", "unit": "ms", "points": times},
        {"what": "memory of the server after n runs", "unit": "MiB", "points": memory},
    ]


def _start_ms(sizes: Sizes, *, kill: bool) -> float:
    taken = []
    for _ in range(2 * sizes.repeats + 1):
        with Server(LONG, DIRECTORY) as server:
            server.wait_ready()
            _post_json(server, "/steps", {"steps": 2})
            taken.append((time.monotonic() - server.started_at) * 1000)
            if not kill:
                server.stop()
    return statistics.median(taken[1:])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    outcome.add_options(parser, "smaller sizes")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # a reader is a connection
    parts: list[tuple[str, Callable[[Sizes], Figure | list[Figure]]]] = [
        ("cost of a step", step_cost),
        ("replay", replay),
        ("size on disk", bytes_per_run),
        ("readers", lambda s: readers.figures(LONG, DIRECTORY, s.readers)),
        ("start-up", start_up),
    ]
    figures: list[Figure] = []
    columns = (SpinnerColumn(), *Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("scale", total=len(parts))
        for name, part in parts:
            progress.update(task, description=f"scale: {name}")
            found = part(sizes)
            figures += found if isinstance(found, list) else [found]
            progress.advance(task)
    result = {
        "kind": "scale",
        "machine": machine.describe(WORK),
        "settings": {"quick": options.quick},
        "figures": figures,
    }
    outcome.keep(options, result)
    from bench import report

    report.show(result, Console())


if __name__ == "__main__":
    main()
