"""Measures what the durable HTTP client adds to a model's answer: `python -m bench.llm --help`.

The openai package asks a model that takes no time (`apps/model.py`): with a client of its own,
with the durable client outside a run, and with it inside a run on SQLite.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from bench import machine, outcome, stats
from bench.outcome import WORK
from bench.overhead import Rounds
from durable_endpoints import durable
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import start
from durable_endpoints.llm import durable_client
from durable_endpoints.stores.sqlite import SQLiteStore

TOKENS, PACE_US = 500, 2000
ASK: Any = [{"role": "user", "content": "say something"}]
TITLES = {"bare": "bare SDK", "outside": "durable client, no run", "durable": "in a durable run"}
_ANSWER: list[Callable[[], Awaitable[dict[str, float]]]] = []


@contextmanager
def model() -> Iterator[str]:
    """A model's server; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.apps.model"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin and process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


async def answer(client: AsyncOpenAI, url: str, pace_us: int) -> dict[str, float]:
    """Read one answer; return its times."""
    at = f"{url}/{TOKENS}/{pace_us}"
    began, cpu = time.perf_counter(), _cpu_s()
    first, text = 0.0, []
    asked = client.with_options(base_url=at)
    async for chunk in await asked.chat.completions.create(model="m", messages=ASK, stream=True):
        first = first or time.perf_counter() - began
        text.append(chunk.choices[0].delta.content or "")
    total = time.perf_counter() - began
    if "".join(text) != "".join(f"token{n} " for n in range(TOKENS)):
        raise SystemExit(f"a wrong answer: {text[:5]}…")
    return {"total_s": total, "first_s": first, "cpu_s": _cpu_s() - cpu}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@durable
async def asked_in_a_run() -> dict[str, float]:
    return await _ANSWER[0]()


async def measure(rounds: int, answers: int, url: str, directory: Path) -> Rounds:
    """Measure every contender once a round, in another order each round."""
    engine = Engine(SQLiteStore(directory / "llm.db"))
    await engine.open()
    own = AsyncOpenAI(api_key="none", base_url=url)
    durable_one = AsyncOpenAI(api_key="none", base_url=url, http_client=durable_client())
    clients = {"bare": own, "outside": durable_one, "durable": durable_one}
    found: Rounds = []
    for number in range(-1, rounds):  # the first one is for warming up
        figures: dict[str, dict[str, Any]] = {}
        for name in random.Random(number).sample(list(clients), len(clients)):
            times: dict[int, list[dict[str, float]]] = {0: [], PACE_US: []}
            for pace_us, repeats in ((0, answers), (PACE_US, max(1, answers // 10))):
                for _ in range(repeats):
                    times[pace_us].append(await _one(engine, clients[name], url, pace_us, name))
            figures[name] = _figures(times)
        found += [figures] if number >= 0 else []
    await own.close()
    await durable_one.close()
    await engine.close()
    return found


async def _one(
    engine: Engine, client: AsyncOpenAI, url: str, pace_us: int, name: str
) -> dict[str, float]:
    if name != "durable":
        return await answer(client, url, pace_us)
    _ANSWER[:] = [lambda: answer(client, url, pace_us)]
    run = await start(engine, asked_in_a_run)
    result: dict[str, float] = await run.result()
    return result


def _figures(times: dict[int, list[dict[str, float]]]) -> dict[str, float]:
    def median(pace_us: int, key: str) -> float:
        return statistics.median(one[key] for one in times[pace_us])

    return {
        "tokens_per_s": TOKENS / median(0, "total_s"),
        "first_ms": median(0, "first_s") * 1e3,
        "cpu_us_per_token": median(0, "cpu_s") / TOKENS * 1e6,
        "paced_total_ms": median(PACE_US, "total_s") * 1e3,
        "paced_first_ms": median(PACE_US, "first_s") * 1e3,
        "paced_cpu_us_per_token": median(PACE_US, "cpu_s") / TOKENS * 1e6,
    }


def table(rounds: Rounds) -> Table:
    """Return the figures: medians, and in brackets the ratio to the bare SDK's."""
    shown = Table("", *TITLES.values())
    for figure in rounds[0]["bare"]:
        cells = []
        for name in TITLES:
            value, ratio = (
                stats.over_rounds(rounds, name, figure),
                stats.ratios(rounds, name, figure),
            )
            assert value and ratio
            cells.append(f"{stats.number(value['median'])} ({ratio['median']:.2f}x)")
        shown.add_row(figure.replace("_", " "), *cells)
    return shown


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.llm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=30, help="answers a round and contender")
    outcome.add_options(parser, "2 short rounds")
    options = parser.parse_args(arguments)
    rounds, answers = (2, 10) if options.quick else (options.rounds, options.answers)
    directory = WORK / "run" / "llm"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with model() as url:
        found = uvloop.run(measure(rounds, answers, url, directory))
    result = {
        "kind": "llm",
        "machine": machine.describe(WORK, "openai"),
        "settings": {"rounds": rounds, "answers": answers, "tokens": TOKENS, "pace_us": PACE_US},
        "rounds": found,
    }
    outcome.keep(options, result)
    Console().print(table(found))


if __name__ == "__main__":
    main()
