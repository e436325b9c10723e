"""The house stays one in which a stranger finds the way: bounds on every room."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import durable_endpoints

ROOT = Path(durable_endpoints.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# Nothing here may wait, look at a clock or touch the world.
PURE = (
    "journal.py", "codec.py", "failures.py", "states.py", "records.py", "frames.py",
    "retry.py", "buckets.py", "hints.py", "links.py",
)  # fmt: skip
IMPURE = {"asyncio", "threading", "sqlite3", "os", "time", "random", "starlette", "httpx"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_touch_nothing(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & IMPURE


def test_every_public_name_is_listed_and_there() -> None:
    public = {name for name in vars(durable_endpoints) if not name.startswith("_")}
    submodules = {module.name for module in pkgutil.iter_modules(durable_endpoints.__path__)}
    assert set(durable_endpoints.__all__) == public - submodules
    assert list(durable_endpoints.__all__) == sorted(durable_endpoints.__all__)


def test_the_core_needs_no_extra() -> None:
    """Importing the package must not need what only an extra installs."""
    import subprocess
    import sys

    code = (
        "import sys, durable_endpoints;"
        "extra = {'fastapi', 'pydantic', 'click', 'rich', 'asyncpg'} & set(sys.modules);"
        "assert not extra, extra"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_typed() -> None:
    assert (ROOT / "py.typed").exists()
    importlib.import_module("durable_endpoints.asgi.drain")
