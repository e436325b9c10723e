"""Disks that fail: the shim, small file systems, and the cutting of their power."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

SHIMS: Final = Path(__file__).parent
CC: Final = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
_EXT4_IOC_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH: Final = 2


@cache
def build(name: str) -> Path:
    """Compile a shim of this directory; returns the library."""
    assert CC is not None
    library = Path(tempfile.mkdtemp(prefix="shims-")) / f"{name}.so"
    source = SHIMS / f"{name}.c"
    command = [CC, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    return library


@dataclass
class FailingDisk:
    """The shim's side of a server: what is to fail, and what the disk was asked."""

    directory: Path
    files: str = "durable.db"  # part of the paths that it concerns

    @property
    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(build("failing_disk")),
            "FAULT_PLAN": str(self._plan),
            "FAULT_PATH": self.files,
            "FAULT_LOG": str(self._log),
        }

    @property
    def _plan(self) -> Path:
        return self.directory / "fault.plan"

    @property
    def _log(self) -> Path:
        return self.directory / "fault.log"

    def fail(self, plan: str) -> None:
        """Begin to fail: `sync eio`, `write enospc 3`, `sync kill 2`, `sync eio 4 once`."""
        self._log.unlink(missing_ok=True)
        fresh = self._plan.with_suffix(".new")
        fresh.write_text(plan)
        fresh.replace(self._plan)

    def heal(self) -> None:
        self._plan.unlink(missing_ok=True)

    def calls(self) -> list[str]:
        """Return the syncs and writes since the plan was made, each with its result."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def calls_after_failure(self) -> list[str]:
        """Return what the disk was asked after its first refusal (I9: nothing)."""
        calls = self.calls()
        failed = [at for at, call in enumerate(calls) if not call.endswith(" ok")]
        return calls[failed[0] + 1 :] if failed else []


class SmallDisk:
    """A file system of its own: a tmpfs of some size, or ext4 on a loop device."""

    def __init__(self, place: Path, options: list[str], source: str) -> None:
        self.mount_point = place
        self._options = options
        self._source = source

    def mount(self) -> None:
        self.mount_point.mkdir(exist_ok=True)
        _run("mount", *self._options, self._source, str(self.mount_point))

    def unmount(self) -> None:
        _run("umount", str(self.mount_point))

    def cut_power(self) -> None:
        """Lose everything that was not synced; the file system is dead until it is mounted anew."""
        directory = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(directory)


@contextmanager
def tmpfs(place: Path, size: str) -> Iterator[SmallDisk]:
    """Mount a tmpfs of a size."""
    with _mounted(SmallDisk(place, ["-t", "tmpfs", "-o", f"size={size}"], "none")) as disk:
        yield disk


@contextmanager
def ext4(place: Path, image: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Make an ext4 in a file and mount it."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _run("mkfs.ext4", "-q", "-F", str(image))
    with _mounted(SmallDisk(place, ["-o", "loop"], str(image))) as disk:
        yield disk


@contextmanager
def _mounted(disk: SmallDisk) -> Iterator[SmallDisk]:
    disk.mount()
    try:
        yield disk
    finally:
        if os.path.ismount(disk.mount_point):
            disk.unmount()


@cache
def why_no_mounts() -> str:
    """Return why this machine cannot mount file systems of our own; "" if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    with tempfile.TemporaryDirectory() as place:
        try:
            with tmpfs(Path(place) / "t", "1M"), ext4(Path(place) / "e", Path(place) / "i", 8):
                return ""
        except subprocess.CalledProcessError as error:
            return f"this machine cannot mount: {error.stderr.strip()}"


def why_no_shims() -> str:
    """Return why shims cannot be preloaded; "" if they can."""
    if CC is None:
        return "no C compiler (cc, gcc or clang) to build the shim"
    try:
        ctypes.CDLL("libc.so.6")
    except OSError:
        return "LD_PRELOAD shims need glibc"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
