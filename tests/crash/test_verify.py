"""The verifier, used as its own program: on a good server, on a killed one, on a wrong address."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from durable_endpoints.testing.plan import asked_for
from durable_endpoints.testing.serving import DoesNotServe, kill_named
from durable_endpoints.testing.verify import EXIT_UNREACHED, Findings
from tests.crash.process import CrashServer
from tests.support.server import ROOT, Server, free_port

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]


def verify(url: str, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durable_endpoints.testing.verify", url, *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=150, cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def served(port: int) -> str:
    return f"{sys.executable} -m uvicorn tests.apps.crashy:app --port {port} --log-level warning"


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
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/tokens/resume?n=40&ms=20", "--seconds", "6",
        "--seed", "3", "--kill-every", "1", "--serve", served(port), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 kills" not in done.stdout
    assert "no violation" in done.stdout
    with pytest.raises(httpx.ConnectError):  # it leaves no server behind
        httpx.get(f"http://127.0.0.1:{port}/")


def test_a_server_whose_work_takes_longer_than_its_first_lives(tmp_path: Path) -> None:
    """Two seconds at a stretch, and a kill after a quarter of that: nothing would ever end."""
    port = free_port()
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/tokens/restart?n=40&ms=50", "--runs", "2",
        "--seed", "3", "--kill-every", "0.5", "--timeout", "90", "--serve", served(port),
        cwd=tmp_path,
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


def test_runs_are_begun_until_the_first_kill(tmp_path: Path) -> None:
    """Two short runs would be over long before it, and would have shown nothing."""
    port = free_port()
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/json?n=2&ms=1", "--runs", "2", "--seed", "3",
        "--kill-every", "1", "--serve", served(port), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 1 kills" in done.stdout
    assert "no violation" in done.stdout


def test_a_server_that_ends_by_itself_was_not_killed(tmp_path: Path) -> None:
    port = free_port()
    ends = ("import sys, threading, os, uvicorn; threading.Timer(2, os._exit, [7]).start(); "
            f"uvicorn.run('tests.apps.crashy:app', port={port}, log_level='warning')")  # fmt: skip
    done = verify(
        f"http://127.0.0.1:{port}", "--path", "/json?n=2&ms=1", "--seed", "3",
        "--kill-every", "4", "--serve", shlex.join([sys.executable, "-c", ends]), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == EXIT_UNREACHED, done.stdout + done.stderr
    assert "could not verify: the server ended by itself, with 7" in done.stdout


@pytest.mark.parametrize("named", ["99999999", str(1 << 70), "who?", None])
def test_a_pid_file_that_names_no_server(named: str | None, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    if named is not None:
        file.write_text(named)
    with CrashServer(tmp_path) as server:
        done = verify(
            server.url, "--path", "/json?n=2&ms=1", "--seconds", "0.5", "--seed", "1",
            "--kill-pid-file", str(file), "--kill-every", "0.1",
        )  # fmt: skip
    assert done.returncode == EXIT_UNREACHED, done.stdout + done.stderr
    assert f"could not verify: no kill happened: {file} " in done.stdout
    assert "no violation" not in done.stdout


def test_runs_that_are_over_before_the_first_kill(tmp_path: Path) -> None:
    with CrashServer(tmp_path) as server:
        file = tmp_path / "pid"
        file.write_text(str(server.pid))
        done = verify(
            server.url, "--path", "/json?n=2&ms=1", "--runs", "2", "--kill-every", "1000",
            "--kill-pid-file", str(file),
        )  # fmt: skip
    assert done.returncode == EXIT_UNREACHED, done.stdout + done.stderr
    assert "no kill happened: the runs were over before the first was due" in done.stdout
    assert "no violation" not in done.stdout


def test_a_pid_file_that_cannot_be_read(tmp_path: Path) -> None:
    with CrashServer(tmp_path) as server:
        done = verify(
            server.url, "--path", "/json?n=2&ms=1", "--seconds", "0.5",
            "--kill-pid-file", str(tmp_path), "--kill-every", "0.1",
        )  # fmt: skip
    assert done.returncode == EXIT_UNREACHED, done.stdout + done.stderr
    assert "could not verify: the process id cannot be read: " in done.stdout
    assert "Traceback" not in done.stderr


def test_a_process_that_may_not_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", kill)
    file = tmp_path / "pid"
    file.write_text("4711\n")
    with pytest.raises(DoesNotServe, match=r"process 4711 of .* cannot be killed: .* user"):
        kill_named(file)


@pytest.mark.parametrize("named", ["0", "-1", "1", "-0", "+1"])
def test_no_id_of_many_is_killed(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("it was sent"))
    file = tmp_path / "pid"
    file.write_text(named)
    assert "no server's process id" in kill_named(file)


def test_control_routes_that_are_elsewhere(tmp_path: Path) -> None:
    with CrashServer(tmp_path) as server:
        done = verify(server.url, "--path", "/sse?n=2&ms=1", "--prefix", "/elsewhere")
    assert done.returncode == EXIT_UNREACHED, done.stdout + done.stderr
    assert "answered 404, not with the run: the control routes are not at /elsewhere" in done.stdout


def test_findings_of_no_run_are_none() -> None:
    assert "no run was seen to its end" in str(Findings(1))
    assert "no violation" not in str(Findings(1))
    assert "no violation" in str(Findings(1, runs=1))


URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "words, said",
    [
        ([URL, "--serve", "app", "--kill-pid-file", "pid"], "not allowed with argument --serve"),
        ([URL, "--runs", "0"], "--runs: 0 is less than 1"),
        ([URL, "--clients", "-1"], "--clients: -1 is less than 1"),
        ([URL, "--readers", "0"], "--readers: 0 is less than 1"),
        ([URL, "--cut", "1.5"], "--cut: 1.5 is not between 0 and 1"),
        ([URL, "--seconds", "0"], "--seconds: 0 is no time above 0"),
        ([URL, "--kill-every", "nan"], "--kill-every: nan is no time above 0"),
        ([URL, "--body", "@no/such/file"], "--body: "),
        ([URL, "--header", "x-key"], "write it as NAME:VALUE"),
        ([URL, "--serve", "run 'app"], "--serve: "),
        ([URL, "--serve", ""], "--serve: say which program serves"),
        ([URL, "--prefix", "_durable"], "--prefix: '_durable' is no path: begin it with /"),
        (["127.0.0.1:8000"], "write it as http://127.0.0.1:8000"),
        (["http://127.0.0.1:eighty"], "write it as http://127.0.0.1:8000"),
        (["http://127.0.0.1:80000"], "write it as http://127.0.0.1:8000"),
        (["http://[::1"], "write it as http://127.0.0.1:8000"),
    ],
)
def test_command_lines_that_cannot_be_carried_out(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        asked_for([*words, "--path", "/sse"])
    assert ended.value.code == EXIT_UNREACHED
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_server_whose_runs_belong_to_somebody(tmp_path: Path) -> None:
    """Who somebody is stands in a header, for the control routes as well."""
    app, env = "tests.apps.surface:app", {"SURFACE_PRINCIPAL": "1"}
    with Server(app, tmp_path, env=env) as server:
        done = verify(
            server.url, "--path", "/events/hand", "--method", "GET", "--runs", "4",
            "--header", "x-user: ann",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs {'completed': 4}" in done.stdout


def test_nothing_to_verify(tmp_path: Path) -> None:
    nobody = verify(f"http://127.0.0.1:{free_port()}", "--path", "/sse")
    assert nobody.returncode == EXIT_UNREACHED
    assert "does not answer" in nobody.stdout
    with CrashServer(tmp_path) as server:
        plain = verify(server.url, "--path", "/docs", "--method", "GET")
    assert plain.returncode == EXIT_UNREACHED
    assert "without a Durable-Run-Id" in plain.stdout
