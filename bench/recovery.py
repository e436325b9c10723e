"""kill -9 half-way through 100 runs: `python -m bench.recovery --help`.

Executions are counted outside the process, by lines that each step appends to a file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

from bench import machine, outcome, report
from bench.apps import work
from bench.contenders import Contender
from bench.load import BadAnswer
from bench.outcome import WORK
from bench.overhead import choose
from bench.peers import install
from bench.server import Server, call, get
from bench.stats import spread

JOBS, STEPS, STEP_MS = 100, 20, 20.0
_STALLED_S = 20.0  # no step for so long, and runs still open: they are lost; leases take 10 s


@dataclass
class Executions:
    """The lines of the execution log: how often each step began and ended."""

    began: Counter[tuple[int, int]]
    ended: Counter[tuple[int, int]]

    @classmethod
    def read(cls, directory: Path) -> Executions:
        counts: dict[str, Counter[tuple[int, int]]] = {"began": Counter(), "ended": Counter()}
        log = directory / "executions.log"
        text = log.read_text() if log.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be half written
            what, job, number = line.split()
            counts[what][int(job), int(number)] += 1
        return cls(counts["began"], counts["ended"])


def _accept(server: Server, jobs: int) -> dict[int, str]:
    """Start all jobs; return where each one's answer will be."""

    def one(job: int) -> str:
        body = json.dumps({"job": job, "steps": STEPS, "step_ms": STEP_MS}).encode()
        headers = {"content-type": "application/json"}
        headers |= {name: value.format(job=job) for name, value in asked.headers}
        status, answer, found = call(server.port, "POST", asked.path, body=body, headers=headers)
        if status != 202:
            raise BadAnswer(f"job {job} was not accepted: {status} {answer[:300]!r}")
        return asked.place.format(job=job) or found["location"] + asked.suffix

    asked = server.contender.jobs

    with ThreadPoolExecutor(16) as pool:
        return dict(zip(range(jobs), pool.map(one, range(jobs)), strict=True))


def _wait_until(directory: Path, wanted: int) -> float:
    """Wait until `wanted` distinct steps have ended or nothing moves; return when that was."""
    size, moved = -1, time.monotonic()
    log = directory / "executions.log"
    while time.monotonic() - moved < _STALLED_S:
        now_size = log.stat().st_size if log.exists() else 0
        if now_size != size:
            size, moved = now_size, time.monotonic()
            if len(Executions.read(directory).ended) >= wanted:
                break
        time.sleep(0.002)
    return time.monotonic()


def _collect(server: Server, places: dict[int, str], limit_s: float) -> tuple[set[int], float]:
    """Fetch every answer; return the jobs that have none, and when the last one came."""
    left = set(places)
    lost: set[int] = set()
    expected, until = work.answer_bytes(STEPS), time.monotonic() + limit_s
    while left and time.monotonic() < until:
        for job in sorted(left):
            status, body = get(server.port, places[job])
            status = 202 if status in server.contender.jobs.not_yet else status
            if status == 200 and json.loads(body) != json.loads(expected):
                raise BadAnswer(f"job {job} answered {body[:300]!r}")
            if status in (404, 410):
                lost.add(job)
            elif status not in (200, 202):
                raise BadAnswer(f"job {job}: status {status}: {body[:300]!r}")
            if status != 202:
                left.discard(job)
        if left:
            time.sleep(0.005)
    return lost | left, time.monotonic()


def run(contender: Contender, directory: Path, *, kill: bool) -> dict[str, Any]:
    """Run the jobs, with or without a kill -9 half-way; return what became of them."""
    shutil.rmtree(directory, ignore_errors=True)
    total = JOBS * STEPS
    with Server(contender, directory) as server:
        server.wait_ready()
        began = time.monotonic()
        places = _accept(server, JOBS)
        figures: dict[str, Any] = {"accepted_s": time.monotonic() - began}
        _wait_until(directory, total // 2 if kill else total)
        if not kill:
            lost, at = _collect(server, places, 60)
            return figures | {"complete_s": at - began, "runs_lost": len(lost)}
        server.kill()
        killed = time.monotonic()
        before = Executions.read(directory)
    with Server(contender, directory) as server:
        server.wait_ready()
        figures["ready_s"] = time.monotonic() - killed
        if any(get(server.port, place)[0] not in (404, 410) for place in places.values()):
            _wait_until(directory, total)
        lost, at = _collect(server, places, _STALLED_S)
        after = Executions.read(directory)
        server.kill()
    again = {step: n for step, n in after.ended.items() if n > 1}
    figures |= {
        "steps_ended_at_kill": len(before.ended),
        "steps_cut_at_kill": len(before.began) - len(before.ended),
        "ended_steps_run_again": len(again),
        "most_times": max(after.ended.values()),
        "steps_lost": total - len(after.ended),
        "runs_lost": len(lost),
    }
    if not lost:
        figures["complete_s"] = at - killed
    return figures


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    keys = {key for figures in rounds for key in figures}
    return {key: spread([f[key] for f in rounds if key in f]) for key in sorted(keys)} | {
        "rounds_complete": sum("complete_s" in f for f in rounds)
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--rounds", type=outcome.at_least_once, default=3)
    outcome.add_options(parser, "one round")
    outcome.add_only(parser)
    parser.add_argument("--postgres", action="store_true", help="also ours on PostgreSQL")
    parser.add_argument("--peers", action="store_true", help="also the peers, and --postgres")
    options = parser.parse_args(arguments)
    outcome.refuse_part(parser, options)
    chosen = choose(options.only, peers=options.peers, postgres=options.postgres)
    contenders = [c for c in chosen if "jobs" in c.workloads]
    count = 1 if options.quick else options.rounds
    directory = WORK / "run" / "recovery"
    found: dict[str, list[dict[str, Any]]] = {c.key: [] for c in contenders}
    calm: dict[str, dict[str, Any]] = {}
    columns = (SpinnerColumn(), *Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("recovery", total=len(contenders) * (count + 1))
        for number in range(count + 1):
            for contender in random.Random(number).sample(contenders, len(contenders)):
                progress.update(task, description=f"kill -9: {contender.title}")
                figures = run(contender, directory, kill=number > 0)
                if number:
                    found[contender.key].append(figures)
                else:
                    calm[contender.key] = figures
                progress.advance(task)
    result = {
        "kind": "recovery",
        "machine": machine.describe(WORK) | {"peers": install.versions(contenders)},
        "settings": {"jobs": JOBS, "steps": STEPS, "step_ms": STEP_MS, "rounds": count},
        "contenders": {c.key: {"title": c.title, "on_disk": c.on_disk} for c in contenders},
        "no_kill": calm,
        "rounds": found,
        "summary": {key: summarize(rounds) for key, rounds in found.items()},
    }
    outcome.keep(options, result)
    report.show(result, Console())


if __name__ == "__main__":
    main()
