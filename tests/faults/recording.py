"""A disk that remembers every write: what it could hold after a power cut, and there are many.

Between two syncs of a file a disk may have kept any of the writes, whole or torn at a sector, in
any order. `Recorder` is an SQLite VFS (by apsw, so a newer SQLite than Python's) under the real
store; `states` makes the files as they could be found after a cut at any moment.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import apsw

SECTOR: Final = 512
NAME: Final = "recording"


class Write(NamedTuple):
    """Bytes on their way to the disk."""

    file: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file cut to a size."""

    file: str
    size: int


class Sync(NamedTuple):
    """From here on everything before it, in this file, is on the disk."""

    file: str


class Ack(NamedTuple):
    """From here on `commits` batches must never be lost."""

    commits: int


Step = Write | Truncate | Sync | Ack


@dataclass
class Recorder:
    """What was asked of the files beside a database, in order."""

    directory: Path
    steps: list[Step] = field(default_factory=list)
    base: dict[str, bytes] = field(default_factory=dict)  # the files when recording began
    on: bool = False

    def begin(self) -> None:
        """Take the files as they are for durable, and record from here on."""
        self.base = {path.name: path.read_bytes() for path in self.directory.iterdir()
                     if path.name.endswith((".db", "-wal"))}  # fmt: skip
        self.on = True

    def add(self, step: Step) -> None:
        """Note a step."""
        if self.on:
            self.steps.append(step)


class _File(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], recorder: Recorder) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._name = Path(path).name
        self._recorder = recorder
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._recorder.add(Write(self._name, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._recorder.add(Truncate(self._name, size))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._recorder.add(Sync(self._name))


class RecordingVFS(apsw.VFS):
    """Registers itself; `close` takes it back."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__(NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> _File:
        return _File(name, flags, self._recorder)

    def close(self) -> None:
        """Let other tests register theirs."""
        self.unregister()


class _Cursor:
    def __init__(self, cursor: Any, rowcount: int) -> None:
        self._cursor = cursor
        self.rowcount = rowcount

    def fetchone(self) -> Any:
        return next(self._cursor, None)

    def fetchall(self) -> list[Any]:
        return list(self._cursor)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


class _Connection:
    """As much of `sqlite3.Connection` as the store uses, over the recorder."""

    def __init__(self, address: str, **_: Any) -> None:
        flags = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._db = apsw.Connection(address, flags=flags, vfs=NAME)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, values: Sequence[Any] = ()) -> _Cursor:
        before = self._db.total_changes()
        cursor = self._db.execute(sql, tuple(values))
        return _Cursor(cursor, self._db.total_changes() - before)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> _Cursor:
        before = self._db.total_changes()
        for row in rows:
            self._db.execute(sql, tuple(row))
        return _Cursor(iter(()), self._db.total_changes() - before)

    def executescript(self, sql: str) -> None:
        for _ in self._db.execute(sql):
            pass

    def close(self) -> None:
        self._db.close()


# What stands for the module `sqlite3` in the store.
RECORDING: Final = SimpleNamespace(
    connect=_Connection, Error=apsw.Error, Connection=sqlite3.Connection,
    OperationalError=apsw.IOError, sqlite_version=apsw.sqlite_lib_version(),
)  # fmt: skip


@dataclass
class State:
    """Files as a power cut could leave them. `acked`: how many batches must be there."""

    files: dict[str, bytearray]
    acked: int
    lost: int  # writes that did not make it
    torn: bool
    at: int  # step of the recording

    def put(self, directory: Path) -> Path:
        """Write the files; returns the database."""
        directory.mkdir(exist_ok=True)
        for old in directory.iterdir():
            old.unlink()
        for name, data in self.files.items():
            (directory / name).write_bytes(data)
        [database] = [name for name in self.files if name.endswith(".db")]
        return directory / database


def states(
    recorder: Recorder, chance: random.Random, most: int, *, whole: int = 0
) -> Iterator[State]:
    """Yield some `most` states; of windows of up to `whole` writes every one there is, besides.

    A window is what was written to a file since it was last synced.
    """
    steps = recorder.steps
    # Just before a sync a window is at its largest: what could be lost before is among it.
    moments = [at for at in range(1, len(steps) + 1)
               if at == len(steps) or isinstance(steps[at], Sync)]  # fmt: skip
    share = max(2, most // len(moments))
    for at in moments:
        durable, pending, acked = _until(recorder, at)
        for kept in _choices(pending, chance, share, whole):
            files = {name: bytearray(data) for name, data in durable.items()}
            for step, entire in kept:
                _apply(files, step if entire else _torn(step, chance))
            torn = not all(entire for _, entire in kept)
            yield State(files, acked, len(pending) - len(kept), torn, at)


def _until(recorder: Recorder, end: int) -> tuple[dict[str, bytearray], list[Step], int]:
    """Return what is surely on the disk after so many steps, what perhaps is, and the acks."""
    durable = {name: bytearray(data) for name, data in recorder.base.items()}
    pending: list[Step] = []
    acked = 0
    for step in recorder.steps[:end]:
        if isinstance(step, Ack):
            acked = step.commits
        elif isinstance(step, Sync):
            for old in [old for old in pending if old.file == step.file]:  # type: ignore[union-attr]
                _apply(durable, old)
            pending = [old for old in pending if old.file != step.file]  # type: ignore[union-attr]
        else:
            pending.append(step)
    return durable, pending, acked


def _choices(
    pending: list[Step], chance: random.Random, most: int, whole: int
) -> Iterator[list[tuple[Step, bool]]]:
    """Yield subsets of writes, in an order; some of the writes torn."""
    if len(pending) <= whole or 2 ** len(pending) <= most:
        for mask in itertools.product((False, True), repeat=len(pending)):
            yield [(step, True) for step, kept in zip(pending, mask, strict=True) if kept]
        return
    yield [(step, True) for step in pending]
    yield []
    for _ in range(most - 2):
        share = chance.choice((0.1, 0.5, 0.9, 1.0))
        kept = [(step, chance.random() < 0.8) for step in pending if chance.random() < share]
        if chance.random() < 0.5:
            chance.shuffle(kept)
        yield kept


def _torn(step: Step, chance: random.Random) -> Step:
    """Return a write of which only some sectors arrived."""
    if not isinstance(step, Write) or len(step.data) <= SECTOR:
        return step
    sectors = range(0, len(step.data), SECTOR)
    begin = chance.choice(sectors)
    end = chance.randrange(begin + SECTOR, len(step.data) + SECTOR, SECTOR)
    return Write(step.file, step.offset + begin, step.data[begin:end])


def _apply(files: dict[str, bytearray], step: Step) -> None:
    if isinstance(step, Write):
        file = files.setdefault(step.file, bytearray())
        if len(file) < step.offset:
            file.extend(bytes(step.offset - len(file)))
        file[step.offset : step.offset + len(step.data)] = step.data
    elif isinstance(step, Truncate):
        file = files.setdefault(step.file, bytearray())
        if len(file) > step.size:
            del file[step.size :]
        else:
            file.extend(bytes(step.size - len(file)))
