"""The verifier, used as its own program: on a good server, on a killed one, on a wrong address."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from durable_endpoints.testing.verify import EXIT_UNREACHED
from tests.crash.process import CrashServer
from tests.support.server import ROOT, free_port

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


def verify(url: str, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durable_endpoints.testing.verify", url, *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=150, cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@contextmanager
def supervised(server: CrashServer, pid_file: Path) -> Iterator[None]:
    """Start the server again whenever it ends."""
    ending = threading.Event()
    starting = threading.Lock()  # held at a start: the end comes before it or after it

    def supervise() -> None:
        while not ending.is_set():
            server.wait(timeout=120)
            with starting:
                if not ending.is_set():
                    server.start()
                    pid_file.write_text(str(server.pid))

    server.start()
    pid_file.write_text(str(server.pid))
    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        yield
    finally:
        with starting:
            ending.set()
        server.kill()
        supervisor.join()


@pytest.mark.parametrize("path", ["/sse?ms=5", "/json?ms=5", "/tokens/resume?ms=5", "/text?n=5"])
def test_a_good_server(path: str, tmp_path: Path) -> None:
    with CrashServer(tmp_path) as server:
        done = verify(server.url, "--path", path, "--runs", "8", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 runs {'completed': 8}, 0 kills" in done.stdout
    assert "no violation" in done.stdout
    assert "8/8 runs" in done.stderr


def test_a_server_that_is_killed_meanwhile(tmp_path: Path) -> None:
    """With a seed whose first kill comes after 0.3 s: before all runs can be at their ends."""
    server, pid_file = CrashServer(tmp_path), tmp_path / "pid"
    with supervised(server, pid_file):
        done = verify(
            server.url, "--path", "/tokens/restart?n=40&ms=10", "--runs", "24", "--seed", "7",
            "--kill-pid-file", str(pid_file), "--kill-every", "1",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 kills" not in done.stdout


def test_a_server_that_it_starts_and_kills_itself(tmp_path: Path) -> None:
    port = free_port()
    serve = f"{sys.executable} -m uvicorn tests.apps.crashy:app --port {port} --log-level warning"
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/tokens/resume?n=40&ms=20", "--seconds", "6",
        "--seed", "3", "--kill-every", "1", "--serve", serve, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 kills" not in done.stdout
    assert "no violation" in done.stdout
    with pytest.raises(httpx.ConnectError):  # it leaves no server behind
        httpx.get(f"http://127.0.0.1:{port}/")


def test_a_server_whose_work_takes_longer_than_its_first_lives(tmp_path: Path) -> None:
    """Two seconds at a stretch, and a kill after a quarter of that: nothing would ever end."""
    port = free_port()
    serve = f"{sys.executable} -m uvicorn tests.apps.crashy:app --port {port} --log-level warning"
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/tokens/restart?n=40&ms=50", "--runs", "2",
        "--seed", "3", "--kill-every", "0.5", "--timeout", "90", "--serve", serve, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs {'completed': 2}" in done.stdout
    assert ", 0 kills" not in done.stdout


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    serve = f"{sys.executable} -c 'raise SystemExit(\"no such app\")'"
    ended = verify(url, "--path", "/sse", "--serve", serve)
    assert ended.returncode == EXIT_UNREACHED
    assert "the server ended with 1: no such app" in ended.stdout
    nothing = verify(url, "--path", "/sse", "--serve", "no-such-program")
    assert nothing.returncode == EXIT_UNREACHED
    assert "no-such-program" in nothing.stdout
    with CrashServer(tmp_path) as server:
        twice = verify(server.url, "--path", "/sse", "--serve", serve)
    assert twice.returncode == EXIT_UNREACHED
    assert "somebody else serves" in twice.stdout


def test_nothing_to_verify(tmp_path: Path) -> None:
    nobody = verify(f"http://127.0.0.1:{free_port()}", "--path", "/sse")
    assert nobody.returncode == EXIT_UNREACHED
    assert "does not answer" in nobody.stdout
    with CrashServer(tmp_path) as server:
        plain = verify(server.url, "--path", "/docs", "--method", "GET")
    assert plain.returncode == EXIT_UNREACHED
    assert "without a Durable-Run-Id" in plain.stdout
