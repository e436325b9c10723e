"""The two workloads of one contender in one round, and the slow disk. Each on a fresh database."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.apps import work
from bench.contenders import Contender
from bench.load import BadAnswer, Samples, measure, post
from bench.machine import Quiet
from bench.readback import Expected
from bench.server import ROOT, Server
from bench.stats import percentile

STEPS, TOKENS, PACE_MS, CLIENTS = 20, 500, 2, 32
SHIM_SOURCE = ROOT / "tests" / "faults" / "slow_fdatasync.c"
STEAL_LIMIT = 5.0  # per cent; a phase that lost more to other machines is measured again
Figures = dict[str, Any]


@dataclass(frozen=True)
class Length:
    """How long each phase takes, in seconds, and how many paced streams are read.

    One client has five answers at least, however slow they come.
    """

    warm_up: float = 0.4
    one_client: float = 1.5
    many_clients: float = 2.5
    streams: float = 1.5
    paced_streams: int = 3
    one_client_answers: int = 5


QUICK = Length(0.2, 0.6, 1.0, 0.6, 1)
FULL = Length()


_ANSWER = orjson.loads(work.answer_bytes(STEPS))


def check_steps(status: int, body: bytes) -> None:
    if status != 200 or orjson.loads(body) != _ANSWER:
        raise BadAnswer(f"answered {status} {body[:300]!r}, not {_ANSWER!r}")


_TOKENS = [work.token(n).encode() for n in range(TOKENS)]


def _check_chat(status: int, body: bytes) -> None:
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    found = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    if status != 200 or found != _TOKENS:
        raise BadAnswer(
            f"status {status}, {len(found)} of {TOKENS} tokens, or not in order: {body[-300:]!r}"
        )


def _chat_request(pace_ms: int) -> bytes:
    return post("/chat", json.dumps({"tokens": TOKENS, "pace_ms": pace_ms}).encode())


def undisturbed(work_once: Callable[[], Figures], tries: int = 3) -> Figures:
    """Measure again while the hypervisor takes too much; the last try counts as it is."""
    while True:
        quiet = Quiet()
        figures = work_once()
        figures["steal_pct"], figures["others_pct"] = quiet.percent()
        tries -= 1
        if figures["steal_pct"] <= STEAL_LIMIT or not tries:
            return figures


@contextmanager
def serving(
    contender: Contender, directory: Path, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run a contender on an empty directory; kill it (-9) in the end, keep the files."""
    shutil.rmtree(directory, ignore_errors=True)
    with Server(contender, directory, env=env) as server:
        server.wait_ready()
        yield server


def steps(
    contender: Contender, directory: Path, length: Length, env: dict[str, str] | None = None
) -> Figures:
    """20 trivial steps, then JSON: one client, then many."""
    figures: Figures = {}
    all_samples: list[Samples] = []

    request = post(contender.steps_path, json.dumps({"steps": STEPS}).encode())

    def ask(server: Server, lanes: int, seconds: float, at_least: int = 1) -> Samples:
        samples = measure(
            server.port, request, check_steps, lanes=lanes, seconds=seconds, at_least=at_least
        )
        all_samples.append(samples)
        return samples

    with serving(contender, directory, env) as server:
        ask(server, 1, length.warm_up)
        syncs, cpu = sync_count(directory), server.cpu_seconds()
        one = ask(server, 1, length.one_client, length.one_client_answers)
        answers = len(one.total)
        figures["cpu_us_per_run"] = (server.cpu_seconds() - cpu) / answers * 1e6
        if syncs is not None:
            figures["syncs_per_run"] = ((sync_count(directory) or 0) - syncs) / answers
        figures["p50_us"] = statistics.median(one.total) * 1e6
        figures["p99_us"] = percentile(one.total, 0.99) * 1e6
        ask(server, CLIENTS, length.warm_up)
        cpu = server.cpu_seconds()
        many = ask(server, CLIENTS, length.many_clients)
        figures["many_cpu_us_per_run"] = (server.cpu_seconds() - cpu) / len(many.total) * 1e6
        figures["many_per_s"] = len(many.total) / many.seconds
        figures["many_p99_ms"] = percentile(many.total, 0.99) * 1e3
    figures["read_back"] = _read_back(contender, directory, "steps", STEPS, all_samples)
    return figures


def chat(contender: Contender, directory: Path, length: Length) -> Figures:
    """500 tokens by SSE: back to back, then one every 2 ms."""
    figures: Figures = {}
    with serving(contender, directory) as server:
        fast, slow = _chat_request(0), _chat_request(PACE_MS)
        warm = measure(server.port, fast, _check_chat, lanes=1, seconds=length.warm_up)
        cpu = server.cpu_seconds()
        burst = measure(server.port, fast, _check_chat, lanes=1, seconds=length.streams)
        answers = len(burst.total)
        figures["chat_cpu_us_per_token"] = (server.cpu_seconds() - cpu) / answers / TOKENS * 1e6
        figures["tokens_per_s"] = TOKENS / statistics.median(burst.total)
        figures["first_ms"] = statistics.median(burst.first) * 1e3
        paced = measure(
            server.port, slow, _check_chat, lanes=1, seconds=0, at_least=length.paced_streams
        )
        figures["paced_total_ms"] = statistics.median(paced.total) * 1e3
        figures["paced_first_ms"] = statistics.median(paced.first) * 1e3
    figures["read_back"] = _read_back(contender, directory, "chat", TOKENS, [warm, burst, paced])
    return figures


def _read_back(
    contender: Contender, directory: Path, kind: str, size: int, samples: list[Samples]
) -> dict[str, int]:
    answers = sum(len(s.total) for s in samples)
    run_ids = tuple(run_id for s in samples for run_id in s.run_ids)
    found = contender.read_back(directory, Expected(kind, answers, size, run_ids))
    return {"answers": answers, **found}


def build_shim(directory: Path) -> Path:
    """Compile the slow disk; raises FileNotFoundError without a C compiler."""
    directory.mkdir(parents=True, exist_ok=True)
    shim = directory / "slow_fdatasync.so"
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", str(shim), str(SHIM_SOURCE), "-ldl"], check=True
    )
    return shim


def slow_disk(shim: Path, directory: Path, delay_ms: float) -> dict[str, str]:
    """Return the environment that slows and counts every sync of a contender."""
    return {
        "LD_PRELOAD": str(shim),
        "SLOW_SYNC_MS": str(delay_ms),
        "SLOW_SYNC_LOG": str(directory / "syncs.log"),
    }


def sync_count(directory: Path) -> int | None:
    """Return how many syncs the contender has done; None where they are not counted."""
    log = directory / "syncs.log"
    return log.read_bytes().count(b"\n") if log.exists() else None
