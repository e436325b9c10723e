"""Fetches test suites that nobody here wrote, and runs them bare and with every route durable.

A suite comes with the source archive of the very version that is installed; nothing of it is kept
in this repository. It needs a few packages that we do not: they go into an environment of its own
that sees ours. Both are kept under `FOREIGN_CACHE` (the user's cache directory if not set).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
EXPECTED: Final = HERE / "expected.toml"
FETCH_S: Final = 300
RUN_S: Final = 900


class NotFetched(Exception):
    """The package index cannot be reached, or does not have it."""


@dataclass(frozen=True)
class Suite:
    """One project's tests: which of them, and what they need beside our own packages."""

    project: str
    packages: tuple[str, ...]
    telling: tuple[str, ...]  # the files that say most about us, for every run
    unusable: tuple[str, ...]  # what does not even run bare without much more
    runs_min: int  # fewer durable requests than this, and the plugin does not work

    @property
    def name(self) -> str:
        """The project and the installed version."""
        return f"{self.project}-{version(self.project)}"


STARLETTE: Final = Suite(
    "starlette",
    ("trio", "itsdangerous", "jinja2", "pyyaml", "httpx2[zstd]"),
    ("tests",),
    ("tests/middleware/test_opentelemetry.py",),
    450,
)
FASTAPI: Final = Suite(
    "fastapi",
    ("trio", "itsdangerous", "jinja2", "pyyaml", "inline-snapshot", "dirty-equals", "a2wsgi",
     "sqlmodel", "pwdlib[argon2]", "pyjwt", "pydantic-settings", "pydantic-extra-types",
     "email-validator", "flask", "typer", "pytest-xdist"),
    ("tests/test_a*.py", "tests/test_custom*.py", "tests/test_dep*.py", "tests/test_exc*.py",
     "tests/test_ext*.py", "tests/test_f*.py", "tests/test_g*.py", "tests/test_m*.py",
     "tests/test_re[aqst]*.py", "tests/test_router*.py", "tests/test_s[set]*.py",
     "tests/test_tutorial/test_b*", "tests/test_tutorial/test_custom_re*",
     "tests/test_tutorial/test_dep*", "tests/test_tutorial/test_[ehm]*",
     "tests/test_tutorial/test_request_f*", "tests/test_tutorial/test_response_*",
     "tests/test_tutorial/test_s[te]*", "tests/test_tutorial/test_sub*",
     "tests/test_tutorial/test_w*"),
    ("tests/test_telemetry", "tests/test_tutorial/test_opentelemetry",
     "tests/test_prepare_release.py", "tests/test_translate.py", "tests/test_fastapi_cli.py",
     "tests/test_tutorial/test_graphql", "tests/test_instrumentation.py"),
    500,
)  # fmt: skip


def cache() -> Path:
    """Return where fetched things are kept."""
    own = os.environ.get("FOREIGN_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else base / "durable-endpoints" / "foreign"


def fetched(suite: Suite) -> Path:
    """Return the directory of a suite's source archive, fetching it if need be.

    Raises: NotFetched.
    """
    target = cache() / suite.name
    if target.exists():
        return target
    download = cache() / f"{suite.name}.download.{os.getpid()}"
    requirement = f"{suite.project}=={version(suite.project)}"
    _pip(sys.executable, "download", "--no-deps", "--no-binary", ":all:", requirement,
         "--dest", str(download))  # fmt: skip
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(download, filter="data")
    (source,) = (path for path in download.iterdir() if path.is_dir())
    if not (source / "tests").is_dir():
        raise NotFetched(f"the source archive of {suite.name} has no tests")
    source.rename(target)  # whole, or not there
    shutil.rmtree(download)
    return target


def interpreter(suite: Suite) -> Path:
    """Return the Python of an environment that has a suite's packages beside ours.

    Raises: NotFetched.
    """
    mark = hashlib.sha256(repr((suite.packages, sys.prefix, sys.version)).encode()).hexdigest()[:8]
    place = cache() / f"{suite.project}-env-{mark}"
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        venv.create(place, with_pip=True, clear=True)
        theirs = next(place.glob("lib/python*/site-packages"))
        (theirs / "ours.pth").write_text("\n".join(site.getsitepackages()))
        _pip(str(python), "install", "--no-warn-conflicts", *suite.packages)
        (place / "complete").touch()
    return python


def _pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotFetched(f"pip {arguments[0]} took longer than {FETCH_S} s") from None
    if done.returncode:
        raise NotFetched(f"pip {arguments[0]}: {done.stderr.strip()[-500:]}")


class Outcomes:
    """What became of a suite's tests in one mode; begins to run at once."""

    def __init__(self, suite: Suite, mode: str, directory: Path, *, everything: bool) -> None:
        self.suite = suite
        self.mode = mode
        self._log = directory / f"{mode}.log"
        self._file = directory / f"{mode}.json"
        tree = directory / mode  # the tests write beside themselves: each mode has a copy
        shutil.copytree(fetched(suite), tree)
        for path in (*suite.unusable, suite.project, "scripts"):
            # Without its own package the suite tests the one that is installed.
            doomed = tree / path
            shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink(missing_ok=True)
        patterns = ("tests",) if everything else suite.telling
        chosen = sorted(
            {str(found.relative_to(tree)) for name in patterns for found in tree.glob(name)}
        )
        command = [
            str(interpreter(suite)), "-m", "pytest", "-p", "durable_plugin",
            "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--quiet", "--tb=native",
            "--timeout=60", "--continue-on-collection-errors", "-k", "not trio",
            f"--durable={mode}", f"--outcomes={self._file}", *chosen,
        ]  # fmt: skip
        path = os.pathsep.join([str(HERE), str(HERE.parents[1]), str(tree)])
        env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=tree, env=env, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self) -> dict[str, Any]:
        """Return the outcomes, by test."""
        try:
            self._process.wait(RUN_S)
        finally:
            self._process.kill()
            self._process.wait()
        tail = self._log.read_text(errors="replace")[-3000:]
        assert self._file.exists(), f"{self.suite.name}, {self.mode}: no outcomes\n{tail}"
        outcomes: dict[str, Any] = json.loads(self._file.read_text())
        if self.mode != "off":
            runs = outcomes["runs"]
            wanted = self.suite.runs_min // (2 if self.mode == "inside" else 1)
            assert runs >= wanted, f"{runs} durable requests: the plugin is lost"
        tests: dict[str, Any] = outcomes["tests"]
        return tests


def expected(suite: Suite, mode: str) -> dict[str, bool]:
    """Return the expected differences: pattern of a test's name, and whether it must be seen."""
    table = tomllib.loads(EXPECTED.read_text())
    return {
        pattern: not entry.get("may", False)
        for entry in table["difference"]
        if entry["suite"] == suite.project and mode in entry.get("modes", ["outside", "inside"])
        for pattern in entry["tests"]
    }


def differences(bare: dict[str, Any], durable: dict[str, Any]) -> dict[str, str]:
    """Return the tests that end otherwise, with what they say."""
    return {
        name: f"{test['outcome']} -> {there['outcome']}\n{there['text']}"
        for name, test in bare.items()
        if (there := durable.get(name, {"outcome": "missing", "text": ""}))["outcome"]
        != test["outcome"]
    }


def matches(name: str, pattern: str) -> bool:
    """Say whether a pattern is for this test; brackets are brackets."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
