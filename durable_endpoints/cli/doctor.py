"""What can be found out about a store's database and its disk, without touching either's data."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from durable_endpoints.clock import Clock, SystemClock
from durable_endpoints.stores.ownership import NETWORK_FILE_SYSTEMS, file_system

Grade = Literal["ok", "note", "warn", "fail"]

FSYNCS: Final = 50
# Far below what a disk or its cache can do: the sync does not reach it.
_TOO_FAST_US: Final = 5.0
_SLOW_US: Final = 10_000.0
_WAL_RESET_FIXED: Final = (3, 51, 3)
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_LAYERED: Final = frozenset({"overlay", "aufs"})
# Of SQLite's file header (sqlite.org/fileformat.html): the read version is 2 in WAL mode.
_MAGIC: Final = b"SQLite format 3\0"
_READ_VERSION_AT: Final = 19


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to do if it is not well."""

    grade: Grade
    what: str
    found: str
    advice: str = ""


def database_path(store: str) -> Path:
    """The file of a store's address, or of a plain path."""
    return Path(store.removeprefix("sqlite:///")).absolute()


def examine(path: Path, clock: Clock | None = None) -> Iterator[Finding]:
    """Look at a database file, its lock and its disk. Reads only, except for the sync probe.

    The probe writes a temporary file of 50 blocks beside the database. The database itself is
    not opened by SQLite: a second connection is what releases before 3.51.3 cannot take.
    """
    yield sqlite_version(sqlite3.sqlite_version_info)
    if not path.parent.is_dir():
        yield Finding("fail", "directory", f"{path.parent} does not exist", "Create it.")
        return
    yield _file(path)
    yield _wal(path)
    yield Finding(
        "note",
        "synchronous",
        "not stored in the file: the store sets FULL at each start, reads it back, and refuses "
        "to start with less",
    )
    yield _lock(path)
    yield _disk(path.parent)
    yield _sync_latency(path.parent, clock or SystemClock())


def sqlite_version(version: tuple[int, ...]) -> Finding:
    """The release of SQLite that this Python is linked to."""
    found = ".".join(map(str, version))
    if version >= _WAL_RESET_FIXED:
        return Finding("ok", "SQLite", found)
    return Finding(
        "note",
        "SQLite",
        f"{found}, which has the WAL-reset bug (fixed in 3.51.3): two connections that write or "
        "checkpoint at once can corrupt the database",
        "The store uses one such connection only. Do not open the database for writing with "
        "another tool (or checkpoint it) while a server runs.",
    )


def _file(path: Path) -> Finding:
    if not path.exists():
        return Finding("note", "database", f"{path} does not exist yet; the first start makes it")
    size = path.stat().st_size
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding("fail", "database", f"{path} cannot be read and written", "Check its owner.")
    if size and not _header(path).startswith(_MAGIC):
        return Finding("fail", "database", f"{path} is no SQLite database", "Name another file.")
    return Finding("ok", "database", f"{path}, {size / 1024:,.0f} KiB")


def _wal(path: Path) -> Finding:
    log = path.with_name(path.name + "-wal")
    header = _header(path) if path.exists() else b""
    if len(header) <= _READ_VERSION_AT:
        return Finding("note", "journal_mode", "wal, from the first start on")
    if header[_READ_VERSION_AT] != 2:
        return Finding(
            "note", "journal_mode", "not wal", "The store switches it at its next start."
        )
    size = log.stat().st_size if log.exists() else 0
    return Finding("ok", "journal_mode", f"wal, with a log file of {size / 1024:,.0f} KiB")


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _lock(path: Path) -> Finding:
    lock = path.with_name(path.name + ".lock")
    if not lock.exists():
        return Finding("ok", "owner", "nobody has opened it yet")
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        said = os.pread(fd, 64, 0).decode(errors="replace").strip()
        try:
            # Shared, so that a server that starts in this moment is the only one to wait.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("ok", "owner", f"a running process ({said or 'unknown'})")
    finally:
        os.close(fd)
    if said in ("", "clean"):
        return Finding("ok", "owner", "none; the last one left in order")
    return Finding(
        "note",
        "owner",
        f"none; the last one ({said}) was killed or crashed",
        "The next start makes the log durable, then recovers its runs.",
    )


def _disk(directory: Path) -> Finding:
    kind = file_system(directory)
    if not kind:
        return Finding("note", "file system", "cannot be told on this system")
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(
            "fail",
            "file system",
            f"{kind}: a network file system, whose locks and syncs cannot be trusted",
            "Put the database on a local disk; the store refuses to start here.",
        )
    if kind in _MEMORY:
        return Finding(
            "warn",
            "file system",
            f"{kind}: it lives in memory. Runs survive kill -9, but not a reboot",
            "Put the database on a disk.",
        )
    if kind in _LAYERED:
        return Finding(
            "warn",
            "file system",
            f"{kind}: a container's own layer, gone when the container is replaced",
            "Put the database on a mounted volume.",
        )
    return Finding("ok", "file system", kind)


def _sync_latency(directory: Path, clock: Clock) -> Finding:
    try:
        times = sorted(_probe(directory, clock))
    except OSError as error:
        return Finding("fail", "sync", f"{directory}: {error}", "The store needs to write here.")
    middle, late = statistics.median(times), times[int(len(times) * 0.98)]
    found = f"{middle:,.0f} µs a sync in the middle, {late:,.0f} µs at worst (of {FSYNCS})"
    if middle < _TOO_FAST_US:
        return Finding(
            "warn",
            "sync",
            f"{found}: too fast to have reached a disk",
            "Nothing written here survives a power cut.",
        )
    if middle > _SLOW_US:
        return Finding(
            "warn",
            "sync",
            found,
            "Every response waits for one sync: use a faster disk, or expect this latency.",
        )
    return Finding("ok", "sync", found)


def _probe(directory: Path, clock: Clock) -> list[float]:
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(FSYNCS):
            os.write(file.fileno(), bytes(4096))
            began = clock.monotonic_s()
            sync(file.fileno())
            times.append((clock.monotonic_s() - began) * 1e6)
    return times
