"""Installs each peer into a virtual environment of its own, and says how to start it."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import postgres
from bench.contenders import POSTGRES_LAUNCH, Contender, Jobs
from bench.peers import readback

HERE = Path(__file__).resolve().parent
VENVS, NPM = HERE.parent / ".work" / "venvs", HERE.parent / ".work" / "npm"
_RESTATE = "@restatedev/restate-server@1.7.12"
_SERVER = (
    "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "starlette==1.10.0",
    "sse-starlette==3.7.0",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """What to install for a peer, and the contenders it gives."""

    key: str
    packages: tuple[str, ...]
    contenders: Callable[[str], list[Contender]]  # of the interpreter's path
    server: tuple[str, ...] = ()  # from npm


def _dbos(python: str) -> list[Contender]:
    return [
        Contender(
            "dbos",
            "DBOS, SQLite",
            "bench.peers.dbos_app:app",
            "workflow, every step, the result; each stream item (rollback journal, FULL; defaults)",
            readback.dbos,
            python=python,
        ),
        *_dbos_postgres(python),
    ]


def _dbos_postgres(python: str) -> list[Contender]:
    try:
        env = {"BENCH_PG_BIN": str(postgres.programs())}
    except FileNotFoundError as error:
        print(f"DBOS on PostgreSQL is left out: {error}", file=sys.stderr)
        return []
    return [
        Contender(
            "dbos_pg",
            "DBOS, PostgreSQL",
            "bench.peers.dbos_app:app",
            "workflow, every step, the result; each stream item: a transaction each (defaults)",
            readback.dbos_postgres,
            env,
            python=python,
            command=POSTGRES_LAUNCH,
        )
    ]


_LANGGRAPH = {
    "sync": "every checkpoint (WAL), written before the next node; tokens are not stored",
    "async": "checkpoints written while the next node runs; tokens are not stored (its default)",
    "exit": "one checkpoint when the graph ends; tokens are not stored",
}


def _langgraph(python: str) -> list[Contender]:
    return [
        Contender(
            f"langgraph_{mode}",
            f"LangGraph {mode}",
            "bench.peers.langgraph_app:app",
            on_disk,
            partial(readback.langgraph, whole=mode == "sync"),
            {"BENCH_MODE": mode},
            python=python,
        )
        for mode, on_disk in _LANGGRAPH.items()
    ]


def _restate(python: str) -> list[Contender]:
    program = _npm_program(_RESTATE, "restate-server")
    return [
        Contender(
            "restate",
            "Restate",
            "bench.peers.restate_launch",
            "request, every step, the answer, in the server's log (RocksDB, synced; defaults)",
            readback.restate,
            {"BENCH_RESTATE": program, "RESTATE_LOG_FILTER": "warn"},
            workloads=frozenset({"steps", "jobs"}),  # no durable token stream in its Python SDK
            python=python,
            command=("-m", "{app}", "{port}"),
            ready=("POST", "/Bench/ready"),
            steps_path="/Bench/steps",
            slowable=False,
            jobs=Jobs(
                "/Bench/job/send",
                (("idempotency-key", "job-{job}"),),
                place="/restate/invocation/Bench/job/job-{job}/output",
                not_yet=(202, 470),
            ),
        )
    ]


def _absurd(python: str) -> list[Contender]:
    env = {"BENCH_PG_BIN": str(postgres.programs()), "BENCH_PG_FIRST": "absurdctl init -d {url}"}
    modes = {"defaults": "steps", "tuned": "steps,jobs"}  # by default a kill is noticed after 120 s
    return [
        Contender(
            "absurd" if mode == "defaults" else "absurd_tuned",
            f"Absurd, {mode}",
            "bench.peers.absurd_app:app",
            "task, every step, the result: a PostgreSQL transaction each (its defaults)",
            readback.absurd,
            {**env, "BENCH_MODE": mode},
            workloads=frozenset(workloads.split(",")),
            python=python,
            command=POSTGRES_LAUNCH,
        )
        for mode, workloads in modes.items()
    ]


def _npm_program(package: str, name: str) -> str:
    """Return the path of a program that an npm package ships, after installing it."""
    program = NPM / "node_modules" / ".bin" / name
    if not program.exists():
        NPM.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--prefix", str(NPM), package]
        subprocess.run(command, check=True)
    return str(program)


PEERS = (
    Peer("restate", ("restate-sdk[serde]==1.3.0", "hypercorn==0.18.0"), _restate, (_RESTATE,)),
    Peer("absurd", ("absurd-sdk==0.5.1", "absurdctl==0.5.1"), _absurd),
    Peer("dbos", ("dbos==3.4.0",), _dbos),
    Peer("langgraph", ("langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"), _langgraph),
)


def contenders() -> list[Contender]:
    """Return the contenders of all peers; one that cannot be installed is named and left out."""
    found: list[Contender] = []
    for peer in PEERS:
        try:
            found += peer.contenders(_install(peer))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"peer {peer.key} is left out: {error}", file=sys.stderr)
    return found


def _interpreter(peer: Peer) -> Path:
    return VENVS / peer.key / "bin" / "python"


def _install(peer: Peer) -> str:
    """Return the peer's interpreter, after making its environment what is asked for."""
    directory, python = VENVS / peer.key, _interpreter(peer)
    mark = directory / "installed.json"
    wanted = json.dumps([*_SERVER, *peer.packages])
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {', '.join(peer.packages)}", file=sys.stderr)
        venv.create(directory, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "-q", *_SERVER, *peer.packages]
        subprocess.run(command, check=True)
        mark.write_text(wanted)
    return str(python)


def versions(measured: Iterable[Contender]) -> dict[str, list[str]]:
    """Return what was installed for each peer that is among the contenders."""
    used = {contender.python for contender in measured}
    return {
        peer.key: [*peer.packages, *peer.server]
        for peer in PEERS
        if str(_interpreter(peer)) in used
    }
