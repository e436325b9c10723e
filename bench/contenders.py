"""Who is measured, and what each of them has on disk when the answer leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from bench import postgres, readback

POSTGRES_LAUNCH = ("-m", "bench.launch", "{app}", "{port}")
ALL = frozenset({"steps", "chat", "jobs"})
_UVICORN = (
    "-m", "uvicorn", "{app}", "--host", "127.0.0.1", "--port", "{port}", "--loop", "uvloop",
    "--http", "httptools", "--no-access-log", "--log-level", "warning",
)  # fmt: skip


@dataclass(frozen=True)
class Jobs:
    """How a contender is asked for a job, and for its answer. "{job}" stands for the job's number.

    The answer's place is the 202's Location with `suffix`, or `place` where there is none.
    """

    path: str = "/jobs"
    headers: tuple[tuple[str, str], ...] = ()
    suffix: str = "/response"
    place: str = ""
    not_yet: tuple[int, ...] = (202,)


@dataclass(frozen=True)
class Contender:
    """An app to measure: how to start it, what it promises, how to check that it keeps it."""

    key: str
    title: str
    app: str  # module:attribute for uvicorn, or a module with `command`
    on_disk: str  # what is on disk when the answer leaves
    read_back: Callable[[Path, readback.Expected], dict[str, int]]
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    workloads: frozenset[str] = ALL
    python: str = sys.executable
    command: tuple[str, ...] = _UVICORN  # "{app}" and "{port}" are filled in
    ready: tuple[str, str] = ("GET", "/ready")
    steps_path: str = "/steps"
    slowable: bool = True  # False: statically linked, so the slow disk cannot get between
    jobs: Jobs = Jobs()


_ASYNC = Jobs(headers=(("prefer", "respond-async"),))

BARE = Contender("bare", "bare app", "bench.apps.bare:app", "nothing", readback.nothing)
DURABLE = Contender(
    "durable",
    "durable",
    "bench.apps.ours:app",
    "the whole run: request, every step, the answer (one group commit behind the work)",
    readback.durable,
    {"BENCH_MODE": "optimistic"},
    jobs=_ASYNC,
)
STRICT = Contender(
    "strict",
    "durable, strict",
    "bench.apps.ours:app",
    "the whole run, and each step before the next one starts",
    readback.durable,
    {"BENCH_MODE": "strict"},
    jobs=_ASYNC,
)
COMMIT_PER_STEP = Contender(
    "commit_per_step",
    "a commit a step",
    "bench.apps.commit_per_step:app",
    "the request, every step, the JSON answer; each by a commit of its own (SQLite WAL, FULL)",
    readback.commit_per_step,
)

OWN = (BARE, DURABLE, STRICT, COMMIT_PER_STEP)


def on_postgres() -> list[Contender]:
    """Return the same app on PostgreSQL.

    Raises: FileNotFoundError if there is no PostgreSQL server.
    """
    env = {"BENCH_PG_BIN": str(postgres.programs())}
    return [
        replace(
            contender, key=f"{contender.key}_pg", title=f"{contender.title}, PostgreSQL",
            on_disk=on_disk, read_back=readback.durable_postgres, command=POSTGRES_LAUNCH,
            env={**contender.env, **env},
        )
        for contender, on_disk in (
            (DURABLE, "the whole run, in one transaction behind the work"),
            (STRICT, "the whole run, and each step before the next one starts"),
        )
    ]  # fmt: skip
