"""What it was measured on: machine, disk, versions, commit. And whether the machine was quiet."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import postgres

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "durable-endpoints", "starlette", "uvicorn", "uvloop", "httptools", "sse-starlette",
    "aiosqlite", "orjson",
)  # fmt: skip


def describe(directory: Path, *packages: str) -> dict[str, Any]:
    """Return what a reader needs to judge the figures; `directory` is where the databases go.

    `packages`: what else was measured, or took part.
    """
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "fdatasync_us": fdatasync_us(directory),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgres": postgres.version(),
        "versions": {name: importlib.metadata.version(name) for name in (*_PACKAGES, *packages)},
    }


def commit() -> str:
    """Return the commit measured, with "+changes" when package or bench differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        measured = ("durable_endpoints", "bench", ":!bench/results")
        return head + ("+changes" if _git("status", "--porcelain", "--", *measured) else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds `directory`."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if str(directory).startswith(mount) and len(mount) > len(best):
            best, kind = mount, found
    return kind


def fdatasync_us(directory: Path, rounds: int = 300) -> float:
    """Return the median time of an appended page and its fdatasync, in microseconds."""
    path = directory / "fdatasync.probe"
    directory.mkdir(parents=True, exist_ok=True)
    taken = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for _ in range(rounds):
            began = time.perf_counter()
            os.write(fd, bytes(4096))
            os.fdatasync(fd)
            taken.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(fd)
        path.unlink()
    return round(statistics.median(taken), 1)


class Quiet:
    """Who else used the CPU between two looks: other machines of the host, other work here."""

    def __init__(self) -> None:
        self._before, self._own_before = self._read(), self._own()

    @staticmethod
    def _read() -> list[int]:
        # user nice system idle iowait irq softirq steal, in ticks
        return [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    @staticmethod
    def _own() -> float:
        """Return the CPU seconds of this process and of the children that it has waited for."""
        return sum(os.times()[:4])

    def percent(self) -> tuple[float, float]:
        """Return what a hypervisor took and what other processes used, in per cent of all time.

        Exact only when all children have been waited for; grandchildren count as others.
        """
        used = [b - a for a, b in zip(self._before, self._read(), strict=True)]
        everything = max(1, sum(used))
        busy = everything - used[3] - used[4] - used[7]
        others = busy - (self._own() - self._own_before) * os.sysconf("SC_CLK_TCK")
        return round(100 * used[7] / everything, 2), round(100 * max(0.0, others) / everything, 2)
