"""`durable replay`, `export`, `backup`, `gc` and `fork`, beside a server that owns the file."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from durable_endpoints.cli import commands
from tests.support.server import ROOT, Server

HERE = Path(__file__).parent
APP = "shop:app"


def notes(directory: Path) -> str:
    return (directory / "notes").read_text()


def test_every_kind_of_run_replays_and_nothing_runs(durable, runs, directory) -> None:
    before = notes(directory)
    found = durable("replay", "--check", APP)
    assert (found.exit_code, found.stderr) == (0, ""), found.stdout
    assert "8 as recorded, to the end" in found.stdout  # with the child
    assert "1 unfinished, and as recorded so far" in found.stdout
    assert notes(directory) == before


@pytest.mark.parametrize(
    ("change", "drifts", "says"),
    [
        ("arguments", {"buy"}, "call 1 'charge': its arguments are not those recorded: [6], they"),
        ("order", {"buy"}, "call 1: the journal holds 'charge', the code now calls 'stock'"),
        ("more", {"buy"}, "call 2: the journal holds 'stock', the code now calls 'price'"),
        ("answer", {"chat"}, "body event 1: recorded"),
        ("wait", {"waiting", "waited", "cancelled"}, 'not those recorded: ["tea"], they'),
        ("error", {"bad"}, "ended as failed (ValueError: bad), with today's code as failed"),
    ],
)
def test_the_gate_names_the_runs_that_drift(
    durable, runs, directory, change: str, drifts: set[str], says: str
) -> None:
    before = notes(directory)
    found = durable("replay", "--check", APP, change=change)
    assert found.exit_code == 1
    assert {name for name, run_id in runs.items() if run_id in found.stderr} == drifts
    assert says in found.stderr
    assert f"{len(drifts)} would not go on with today's code" in found.stdout
    assert notes(directory) == before


def test_an_ended_run_of_another_version_is_pinned(runs, directory) -> None:
    env = {**os.environ, "SHOP": "version", "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    code = "from durable_endpoints.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "replay", "--check", "--name", "POST /buy", APP],
        cwd=directory, env=env, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert "1 not replayed: ended under another version" in found.stdout


def test_one_run_is_shown_step_by_step(durable, runs) -> None:
    found = durable("replay", runs["buy"], APP)
    assert found.exit_code == 0
    assert [line.split()[-1] for line in found.stdout.splitlines() if "✓" in line] == [
        "price", "charge", "stock",
    ]  # fmt: skip
    found = durable("replay", runs["buy"][-12:], APP, change="arguments")
    assert found.exit_code == 1
    assert "they now are [7]" in found.stdout
    found = durable("replay", runs["waiting"], APP)
    assert found.exit_code == 0
    assert "went beyond the journal at 'signal:ok'" in found.stdout


def test_what_is_missing_is_said(durable, runs, directory) -> None:
    assert "Give RUN and MODULE:APP" in durable("replay", APP).stderr
    assert "No run matches 'nope'" in durable("replay", "nope", APP).stderr
    assert "there is no database" in durable("replay", "last", APP, "--store", "no.db").stderr
    assert 'module "nope"' in durable("replay", "last", "nope:app").stderr
    (directory / "bare.py").write_text("async def app(scope, receive, send): ...\n")
    assert "no DurableMiddleware" in durable("replay", "last", "bare:app").stderr


def test_an_exported_run_is_a_test(durable, runs, directory, tmp_path: Path) -> None:
    for name in ("buy", "chat", "side", "waited"):
        file = tmp_path / f"test_{name}.py"
        assert durable("export", runs[name], APP, "--pytest", str(file)).exit_code == 0
        assert "\u202e" not in file.read_text()
    refused = durable("export", runs["buy"], APP, "--pytest", str(file))
    assert "is there already" in refused.stderr

    passed = pytest_in(tmp_path, "")
    assert passed.returncode == 0, passed.stdout
    assert "4 passed" in passed.stdout
    failed = pytest_in(tmp_path, "answer")
    assert failed.returncode == 1
    assert "1 failed, 3 passed" in failed.stdout
    assert "body event 1: recorded" in failed.stdout


def pytest_in(directory: Path, change: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SHOP": change, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."]
    return subprocess.run(
        command, cwd=directory, env=env, text=True, capture_output=True, check=False
    )


def test_a_journal_is_exported_as_json(durable, runs) -> None:
    entries = json.loads(durable("export", runs["chat"]).stdout)
    assert [entry["seq"] for entry in entries] == list(range(len(entries)))
    assert entries[0]["args"]["json"]["path"] == "/chat"


def test_a_backup_is_a_store(durable, runs, directory, tmp_path: Path) -> None:
    target = tmp_path / "copies" / "durable.db"
    found = durable("backup", str(target))
    assert (found.exit_code, found.stderr) == (0, "")
    assert "checked" in found.stdout
    assert [path.name for path in target.parent.iterdir()] == ["durable.db"]
    with sqlite3.connect(target) as db:
        assert db.execute("select count(*) from runs").fetchone()[0] == len(runs) + 1
    db.close()
    assert "is there already" in durable("backup", str(target)).stderr
    checked = durable("replay", "--check", APP, "--store", str(target))
    assert checked.exit_code == 0
    with Server(APP, tmp_path / "copies", env={"PYTHONPATH": str(HERE)}):
        pass  # its own start check takes it


def test_a_damaged_run_is_told_and_the_others_replay(durable, runs, tmp_path: Path) -> None:
    target = tmp_path / "durable.db"
    durable("backup", str(target))
    db = sqlite3.connect(target)
    with db:
        (number,) = db.execute("select no from runs where run_id = ?", (runs["bad"],)).fetchone()
        sql = "update frames set data = zeroblob(40) where id = ?"
        assert db.execute(sql, (number << 20,)).rowcount == 1
    db.close()
    found = durable("replay", "--check", APP, "--store", f"sqlite:///{target}")
    assert found.exit_code == 1
    assert runs["bad"] in found.stderr
    assert "1 damaged: cannot be read" in found.stdout
    assert "7 as recorded, to the end" in found.stdout


def test_runs_are_watched_until_ctrl_c(
    durable, runs, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands, "sleep", sleep)
    found = durable("runs", "--watch", "--url", server.url)
    assert (found.exit_code, len(looks)) == (0, 2)
    assert runs["waiting"] in found.stdout
    assert "leave out --json" in durable("runs", "--watch", "--json", "--url", server.url).stderr


def test_a_fork_goes_on_from_a_step(durable, runs, server) -> None:
    at = ("--url", server.url)
    found = durable("fork", runs["buy"], "charge", "--result", "price=50", *at)
    assert found.exit_code == 0, found.stderr
    forked = found.stdout.strip()
    assert durable("attach", forked, *at).exit_code == 0
    entries = json.loads(durable("export", forked).stdout)
    paid = [e for e in entries if e["kind"] == "step" and e["key"].endswith(" charge")]
    assert [e["payload"]["json"] for e in paid] == ["paid 100"]
    assert durable("replay", forked, APP).exit_code == 0
    assert "It has: price" in durable("fork", runs["buy"], "nope", *at).stderr
    refused = durable("fork", runs["buy"], "charge", "--result", "price", *at)
    assert "is not STEP=JSON" in refused.stderr


def test_old_runs_are_deleted(durable, runs, server, directory) -> None:
    at = ("--url", server.url)
    assert "0 runs would be deleted" in durable("gc", "--older-than", "1h", "--dry-run", *at).stdout
    assert "is no length of time" in durable("gc", "--older-than", "soon", *at).stderr
    refused = durable("gc", "--older-than", "0s", "--store", "durable.db")
    assert "in use by another process" in refused.stderr
    found = durable("gc", "--older-than", "0s", "--status", "cancelled", *at)
    assert (found.exit_code, found.stdout) == (0, "1 runs deleted.\n")
    assert durable("replay", runs["cancelled"], APP).exit_code == 1
    server.terminate()
    found = durable("gc", "--older-than", "0s", "--vacuum", "--store", "durable.db")
    assert found.exit_code == 0, found.stderr
    assert "runs deleted." in found.stdout
    assert "KiB given back" in found.stdout
    left = durable("replay", "--check", APP)
    assert left.exit_code == 0
    assert "1 as recorded, to the end" in left.stdout  # the dead one waits for a person
    assert "1 unfinished" in left.stdout
