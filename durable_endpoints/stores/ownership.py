"""The file beside a database that says who owns it and whether the last owner left in order."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final
from weakref import WeakSet

from durable_endpoints.errors import StoreRefused

_CLEAN: Final = b"clean\n"
_DAMAGED: Final = b"damaged\n"
_POLL_S: Final = 0.05
# On these a lock or an fsync may not mean what it says (sqlite.org/faq.html#q5).
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"}
)


class Ownership:
    """An exclusive `flock` on `<database>.lock`, held while the store is open."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.path = database.with_name(database.name + ".lock")
        self.was_clean = True
        self.was_damaged = False  # the last owner met a damaged page: look before going on
        self._fd: int | None = None
        _HELD.add(self)

    def take(self, wait_s: float) -> None:
        """Take the lock and note that the database is in use. Blocks for `wait_s` at most.

        Raises: StoreRefused if another process holds it, or on a network file system.
        """
        self._refuse_network()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(max(1, round(wait_s / _POLL_S))):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
        else:
            owner = os.pread(fd, 64, 0).decode(errors="replace").strip()
            os.close(fd)
            raise StoreRefused(
                f"{self.database} is in use by another process ({owner or 'unknown'}). One "
                "process owns a SQLite journal: run a single worker (no --workers), stop the other "
                "process, or use a PostgreSQL store for several nodes."
            )
        said = os.pread(fd, 64, 0)
        self.was_damaged = said == _DAMAGED
        self.was_clean = said in (b"", _CLEAN) and not (said == b"" and self.database.exists())
        self._fd = fd
        self._write(b"pid %d\n" % os.getpid())

    def release(self, *, clean: bool) -> None:
        """Give the lock back; `clean` says that nothing is left to recover."""
        if self._fd is None:
            return
        if clean:
            self._write(_CLEAN)
        os.close(self._fd)
        self._fd = None

    def note_damage(self) -> None:
        """Let the next owner check the whole database, so that a restart is no endless loop."""
        self._write(_DAMAGED)

    def forget(self) -> None:
        """Close the lock's file without giving the lock back: the parent process has it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def make_durable(self) -> None:
        """Make what an unclean stop left durable before anybody reads it (I10).

        After kill -9 the log may hold a commit that only the page cache knows; after an I/O error
        the kernel may even have marked lost pages as written. Writing the log anew covers both.
        """
        wal = self.database.with_name(self.database.name + "-wal")
        if wal.exists():
            copy = wal.with_name(wal.name + ".copy")
            copy.write_bytes(wal.read_bytes())
            _sync(copy)
            copy.replace(wal)
        if self.database.exists():
            _sync(self.database)
        _sync(self.database.parent)

    def _write(self, text: bytes) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
            os.fsync(self._fd)

    def _refuse_network(self) -> None:
        kind = file_system(self.database.parent)
        if kind in NETWORK_FILE_SYSTEMS:
            raise StoreRefused(
                f"{self.database} is on a network file system ({kind}), where locks and syncs "
                "cannot be trusted. Put the database on a local disk, or use a PostgreSQL store."
            )


_HELD: WeakSet[Ownership] = WeakSet()


def _forget_in_child() -> None:
    """Close the lock in a forked child: it would hold it on after its parent was killed."""
    for owner in list(_HELD):
        owner.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds a directory; "" where it cannot be told."""
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return ""
    best, kind = "", ""
    place = str(directory.resolve())
    for line in mounts.splitlines():
        _, point, fs, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fs
    return kind


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
