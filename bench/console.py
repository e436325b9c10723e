"""What an open console costs the runs: `python -m bench.console --help`.

One server under the load of 32 clients, with and without people who look, in turns of ten seconds.
Whoever looks has every live page of the console open, asks for each as often as the page itself
does, and follows a run's events; in a process of its own. The server has a core to itself, so that
all that the console makes it do is taken from its throughput. What one of them costs is less than
what the machine's own noise adds and takes, so there are eight, and the figure is a person's share.
"""

from __future__ import annotations

import argparse
import html
import http.client
import json
import multiprocessing
import os
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from bench import machine, outcome, phases
from bench.contenders import DURABLE
from bench.load import BadAnswer, Samples, measure, post
from bench.outcome import WORK
from bench.readback import Expected
from bench.server import Server
from bench.stats import mean, number, spread

DIRECTORY = WORK / "run" / "console"
COST_PCT_MAX = 2.0  # of the throughput
_RUN: Final = "/_durable/console/runs/{run}"
# The live pages. Each says itself how soon it asks again.
PAGES: Final = (
    "/_durable/", "/_durable/console/waiting", "/_durable/console/health", _RUN, f"{_RUN}/head"
)  # fmt: skip
_EVERY: Final = re.compile(rb'hx-trigger="every (\d+)s')
_FOLLOWED: Final = re.compile(r'hx-sse:connect="([^"]+)"')
_PARTIAL: Final = {"hx-request": "true", "hx-request-type": "partial"}
Figure = dict[str, Any]


class Looker:
    """Somebody with the console open: threads of a process that is told when to look."""

    def __init__(self, port: int, people: int) -> None:
        self._port = port
        self._looking = threading.Event()
        self._lock = threading.Lock()
        self._seen = 0
        self._bytes = 0
        self._wrong: list[str] = []
        self._run = self._slow_run()
        for _ in range(people):
            for path in PAGES:
                self._begin(self._poll, path.format(run=self._run))
            self._begin(self._follow, f"{_RUN}/events".format(run=self._run))

    def _begin(self, work: Any, *args: Any) -> None:
        threading.Thread(target=self._guarded, args=(work, *args), daemon=True).start()

    def _guarded(self, work: Any, *args: Any) -> None:
        try:
            while True:
                work(*args)
        except (OSError, http.client.HTTPException, BadAnswer) as error:
            self._wrong.append(f"{args[0]}: {error!r}")

    def _slow_run(self) -> str:
        """Begin a run that streams all the time; return its id. Nobody waits for its end."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        body = json.dumps({"tokens": 1_000_000, "pace_ms": 50})
        headers = {"content-type": "application/json"}
        connection.request("POST", "/chat", body=body, headers=headers)
        run_id = str(connection.getresponse().headers["durable-run-id"])
        connection.close()
        return run_id

    def _poll(self, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while self._looking.wait():
            began = time.monotonic()
            connection.request("GET", path, headers=_PARTIAL)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise BadAnswer(f"{response.status} {body[:200]!r}")
            connection.close()  # servers close idle ones, and this one is idle for seconds
            self._note(len(body))
            every = _EVERY.search(body)
            if every is None:
                raise BadAnswer(f"{path} is not live")
            time.sleep(max(0.0, int(every[1]) - (time.monotonic() - began)))

    def _follow(self, page: str) -> None:
        """Open a run's page of events, and follow them from where it says."""
        self._looking.wait()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("GET", page)
        found = _FOLLOWED.search(connection.getresponse().read().decode())
        if found is None:
            raise BadAnswer(f"{page} follows nothing")
        connection.request("GET", html.unescape(found[1]))
        response = connection.getresponse()
        if response.status != 200:
            raise BadAnswer(f"{response.status}")
        while self._looking.is_set() and (data := response.read1(65536)):
            self._note(len(data))
        connection.close()

    def _note(self, size: int) -> None:
        with self._lock:
            self._seen += 1
            self._bytes += size

    def serve(self, pipe: Connection) -> None:
        """Look or look away, as the pipe says; tell what was seen."""
        while True:
            (self._looking.set if pipe.recv() else self._looking.clear)()
            pipe.send((self._seen, self._bytes, self._wrong))


def look(port: int, people: int, pipe: Connection) -> None:
    """Be the process of whoever looks."""
    Looker(port, people).serve(pipe)


def turn(server: Server, seconds: float) -> tuple[Samples, Figure]:
    """Measure for some seconds."""
    request = post("/steps", json.dumps({"steps": phases.STEPS}).encode())
    cpu = server.cpu_seconds()
    samples = measure(
        server.port, request, phases.check_steps, lanes=phases.CLIENTS, seconds=seconds
    )
    answers = len(samples.total)
    return samples, {
        "per_s": answers / samples.seconds,
        "cpu_us_per_run": (server.cpu_seconds() - cpu) / answers * 1e6,
    }


@contextmanager
def apart() -> Iterator[int]:
    """Leave a core to the server, and return it; what is measured next has all of them again."""
    cores = os.sched_getaffinity(0)
    core, *others = sorted(cores)
    if not others:
        raise SystemExit("it takes two cores: one for the server, one for those who ask it")
    os.sched_setaffinity(0, others)
    try:
        yield core
    finally:
        os.sched_setaffinity(0, cores)


def rounds(count: int, seconds: float, people: int, progress: Progress) -> Figure:
    """Measure with nobody and with somebody in turns; read back in the end what was answered."""
    task = progress.add_task("console", total=count)
    all_samples, found = [], []
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with apart() as core, phases.serving(DURABLE, DIRECTORY) as server:
        server.pin(core)
        looking = context.Process(target=look, args=(server.port, people, theirs), daemon=True)
        looking.start()

        def told(is_to_look: bool) -> tuple[int, int]:
            ours.send(is_to_look)
            seen, size, wrong = ours.recv()
            if wrong:
                raise BadAnswer(f"the console: {wrong[0]}")
            return seen, size

        told(False)
        all_samples.append(turn(server, seconds)[0])  # warms up
        for one in range(count):
            figures: Figure = {}
            for is_open in (False, True) if one % 2 else (True, False):
                before = told(is_open)
                samples, figures["open" if is_open else "shut"] = turn(server, seconds)
                all_samples.append(samples)
                after = told(False)
                if is_open:
                    figures["answers_seen"] = after[0] - before[0]
                    figures["bytes_seen"] = after[1] - before[1]
            found.append(figures)
            progress.advance(task)
        looking.kill()
        looking.join()
    answers = sum(len(samples.total) for samples in all_samples)
    run_ids = tuple(run for samples in all_samples for run in samples.run_ids)
    kept = DURABLE.read_back(DIRECTORY, Expected("steps", answers, phases.STEPS, run_ids))
    return {"rounds": found, "read_back": {"answers": answers, **kept}}


def summarize(found: list[Figure], people: int) -> Figure:
    """Return what an open console takes, a person, in per cent of the same round without it."""

    def taken(figure: str, sign: int) -> dict[str, float]:
        share = sign * 100 / people
        each = [share * (one["open"][figure] / one["shut"][figure] - 1) for one in found]
        return spread(each) | mean(each)

    return {
        "throughput_lost_pct": taken("per_s", -1),
        "cpu_added_pct": taken("cpu_us_per_run", 1),
        "answers_seen": statistics.median(one["answers_seen"] for one in found),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--people", type=int, default=8, help="who look, with all pages each")
    outcome.add_options(parser, "2 short rounds")
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("it takes two rounds to say how sure a figure is")
    count, seconds = (2, 2.0) if options.quick else (options.rounds, options.seconds)
    with Progress(console=Console(stderr=True)) as progress:
        found = rounds(count, seconds, options.people, progress)
    summary = summarize(found["rounds"], options.people)
    result = {
        "kind": "console", "machine": machine.describe(WORK),
        "settings": {"rounds": count, "seconds": seconds, "people": options.people},
        "summary": summary, **found,
    }  # fmt: skip
    outcome.keep(options, result)
    show(summary, Console())


def show(summary: Figure, console: Console) -> None:
    """Print what was lost; a result above the limit, or not surely below it, is named."""
    for what, figure in (("throughput lost, a person", "throughput_lost_pct"),
                         ("CPU added to a run", "cpu_added_pct")):  # fmt: skip
        one = summary[figure]
        console.print(f"{what:26} {number(one['mean'])} % ± {number(one['margin'])} "
                      f"({number(one['min'])} to {number(one['max'])})")  # fmt: skip
    console.print(f"answers of the console in a turn: {number(summary['answers_seen'])}")
    lost = summary["throughput_lost_pct"]
    if lost["mean"] > COST_PCT_MAX:
        console.print(f"more than {COST_PCT_MAX:g} % of the throughput", style="bold red")
    elif lost["mean"] + lost["margin"] > COST_PCT_MAX:
        console.print(f"not surely below {COST_PCT_MAX:g} % of the throughput", style="bold red")


if __name__ == "__main__":
    main()
