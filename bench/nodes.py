"""One, two, three nodes on one PostgreSQL: `python -m bench.nodes --help`.

Runs a second, for so many nodes that share the clients' connections. And a run's stream read
through another node than the one that drives it: by how much its events come later there, beside
a second reader on the node itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import machine, outcome, phases, postgres, readback
from bench.contenders import DURABLE
from bench.load import BadAnswer, measure, post
from bench.outcome import WORK
from bench.server import Server
from bench.stats import number, percentile, spread

DIRECTORY = WORK / "run" / "nodes"
NODES = (1, 2, 3)
Figure = dict[str, Any]


@contextmanager
def nodes(url: str, schema: str, count: int) -> Iterator[list[Server]]:
    """Start so many nodes on a new schema; kill them (-9) in the end."""
    address = f"{url}?schema={schema}"
    contender = replace(DURABLE, env={**DURABLE.env, "BENCH_POSTGRES": address})
    with ExitStack() as stack:
        made = [stack.enter_context(Server(contender, DIRECTORY / f"{schema}-{n}"))
                for n in range(count)]  # fmt: skip
        for node in made:
            node.wait_ready()
        yield made


def throughput(url: str, schema: str, count: int, seconds: float) -> Figure:
    """Measure 32 clients on so many nodes; every answer is read back from the database."""
    request = post("/steps", json.dumps({"steps": phases.STEPS}).encode())
    with nodes(url, schema, count) as made:
        ports = [node.port for node in made]

        def ask(lanes: int, duration: float) -> Any:
            return measure(ports, request, phases.check_steps, lanes=lanes, seconds=duration)

        warm = ask(phases.CLIENTS, seconds / 4)
        one = ask(1, seconds / 4)
        cpu = sum(node.cpu_seconds() for node in made)
        many = ask(phases.CLIENTS, seconds)
        cpu = sum(node.cpu_seconds() for node in made) - cpu
    samples = [warm, one, many]
    answers = sum(len(s.total) for s in samples)
    run_ids = tuple(run for s in samples for run in s.run_ids)
    kept = readback.durable_in(
        url, schema, readback.Expected("steps", answers, phases.STEPS, run_ids)
    )
    return {
        "per_s": len(many.total) / many.seconds,
        "p50_ms": statistics.median(one.total) * 1e3,
        "p99_ms": percentile(many.total, 0.99) * 1e3,
        "cpu_us_per_run": cpu / len(many.total) * 1e6,
        "read_back": {"answers": answers, **kept},
    }


async def _times(port: int, request: bytes, tokens: int, named: asyncio.Future[str]) -> list[float]:
    """Read a stream; return when each event's data arrived."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    came: list[float] = []
    while len(came) < tokens:
        line = await reader.readline()
        if not line:
            raise BadAnswer(f"the stream ended after {len(came)} of {tokens} events")
        if line.startswith(b"data: token"):
            came.append(time.perf_counter())  # the loop's clock is too coarse
        elif line.lower().startswith(b"durable-run-id:") and not named.done():
            named.set_result(line.split(b":")[1].strip().decode())
    writer.close()
    return came


async def _followed(driver: int, other: int, tokens: int, pace_ms: float) -> dict[str, list[float]]:
    """Read one run by three readers; return how much later the second and third got each event."""
    named: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    body = json.dumps({"tokens": tokens, "pace_ms": pace_ms}).encode()
    first = asyncio.create_task(_times(driver, post("/chat", body), tokens, named))
    both: list[asyncio.Future[Any]] = [first, named]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if first.done():
        first.result()
    lines = (f"GET /_durable/runs/{named.result()}/stream HTTP/1.1", "Host: 127.0.0.1",
             "Accept: text/event-stream")  # fmt: skip
    request = "\r\n".join(lines).encode() + b"\r\n\r\n"
    same = asyncio.create_task(_times(driver, request, tokens, named))
    across = asyncio.create_task(_times(other, request, tokens, named))
    base = await first
    after = tokens // 10  # what was there before a reader came is no latency
    return {
        name: [(late - own) * 1e3 for own, late in zip(base, found, strict=True)][after:]
        for name, found in (("same", await same), ("other", await across))
    }


def tail(url: str, schema: str, tokens: int, pace_ms: float) -> Figure:
    """Measure a reader on another node."""
    with nodes(url, schema, 2) as (driver, other):
        found = uvloop.run(_followed(driver.port, other.port, tokens, pace_ms))
    return {
        f"{name}_{what}_ms": value
        for name, late in found.items()
        for what, value in (("median", statistics.median(late)), ("p99", percentile(late, 0.99)))
    }


def show(result: Figure, console: Console) -> None:
    """Print the figures."""
    table = Table("nodes", "runs/s, 32 clients", "of one node", "p99 ms", "1 client, p50 ms",
                  "CPU µs a run")  # fmt: skip
    figures = ("per_s", "of_one", "p99_ms", "p50_ms", "cpu_us_per_run")
    for count, found in result["summary"].items():
        table.add_row(count, *(
            f"{number(found[name]['median'])} ({number(found[name]['min'])}-"
            f"{number(found[name]['max'])})" for name in figures
        ))  # fmt: skip
    console.print(table)
    for name, what in (("same", "a second reader, the same node"), ("other", "… another node")):
        median, p99 = (result["tail"][f"{name}_{part}_ms"] for part in ("median", "p99"))
        console.print(f"{what:32} later by {number(median['median'])} ms "
                      f"(p99 {number(p99['median'])} ms)")  # fmt: skip


def summarize(rounds: list[dict[str, Figure]]) -> Figure:
    """Return the spreads; "of_one" is taken to one node in the same round."""
    names = ("per_s", "p99_ms", "p50_ms", "cpu_us_per_run")
    return {
        str(count): {
            **{name: spread([one[str(count)][name] for one in rounds]) for name in names},
            "of_one": spread([one[str(count)]["per_s"] / one["1"]["per_s"] for one in rounds]),
        }
        for count in NODES
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.nodes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of 32 clients, each")
    parser.add_argument("--tokens", type=int, default=500, help="of the stream that is followed")
    parser.add_argument("--pace-ms", type=float, default=10.0)
    outcome.add_options(parser, "1 short round")
    options = parser.parse_args(arguments)
    count, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    tokens = 100 if options.quick else options.tokens
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    rounds, tails = [], []
    with Progress(console=Console(stderr=True)) as progress, postgres.running(DIRECTORY) as url:
        task = progress.add_task("nodes", total=count * (len(NODES) + 1))
        for one in range(count):
            found: dict[str, Figure] = {}
            for many in random.Random(one).sample(NODES, len(NODES)):
                progress.update(task, description=f"{many} of {len(NODES)} nodes")
                found[str(many)] = throughput(url, f"r{one}n{many}", many, seconds)
                progress.advance(task)
            rounds.append(found)
            tails.append(tail(url, f"tail{one}", tokens, options.pace_ms))
            progress.advance(task)
    result = {
        "kind": "nodes", "machine": machine.describe(WORK), "rounds": rounds, "tails": tails,
        "settings": {"rounds": count, "seconds": seconds, "tokens": tokens,
                     "pace_ms": options.pace_ms, "clients": phases.CLIENTS},
        "summary": summarize(rounds),
        "tail": {name: spread([one[name] for one in tails]) for name in tails[0]},
    }  # fmt: skip
    outcome.keep(options, result)
    show(result, Console())


if __name__ == "__main__":
    main()
