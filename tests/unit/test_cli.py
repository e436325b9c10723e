"""The command line without a server: what it shows, and what it says when something is missing."""

from __future__ import annotations

import fcntl
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from durable_endpoints.cli import buffering, doctor, render, timeline
from durable_endpoints.cli.commands import cli
from durable_endpoints.cli.follow import Printer, readable
from durable_endpoints.client import Event

RUN = "01934f6e-7c1a-7000-8000-00000000002a"


def durable(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def text(renderable: Any) -> str:
    console = Console(width=160, record=True, file=None, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def entry(kind: str, at_ms: int, key: str = "", took_us: int = 0, args: str = "") -> dict[str, Any]:
    at = datetime.fromtimestamp(1_700_000_000 + at_ms / 1000, UTC).isoformat()
    return {"kind": kind, "at": at, "key": key, "took_us": took_us, "args": args}


JOURNAL = [
    entry("started", 0),
    entry("step", 120, "0 plan", took_us=100_000),
    entry("step", 300, "search.0/0 search", took_us=150_000, args='["tea"]'),
    entry("step_failed", 350, "search.1/0 search", took_us=190_000),
    entry("head", 350),
    entry("stream", 400, "1 answer"),
    *(
        e
        for ms in range(450, 950, 100)
        for e in (entry("item", ms, "1 answer"), entry("chunk", ms))
    ),
    entry("stream_end", 1000, "1 answer"),
    entry("completed", 1000),
]


def test_a_timeline_has_a_span_for_each_step() -> None:
    found = timeline.read(JOURNAL)
    assert [(s.name, round(s.start_ms), round(s.end_ms or -1)) for s in found.spans] == [
        ("plan", 20, 120),
        ("search", 150, 300),
        ("search", 160, 350),
        ("answer", 400, 1000),
    ]
    assert [s.failed for s in found.spans] == [False, False, True, False]
    assert found.spans[3].items == 5
    assert len(found.events_ms) == 6
    assert found.end_ms == 1000


def test_a_timeline_shows_what_is_still_open_and_what_began_anew() -> None:
    entries = [
        entry("started", 0), entry("stream", 10, "0 answer"), entry("item", 20, "0 answer"),
        entry("reset", 30, "0 answer"), entry("rewind", 30), entry("stream", 40, "0 answer"),
    ]  # fmt: skip
    found = timeline.read(entries)
    (span,) = found.spans
    assert (span.end_ms, span.items, span.restarts, found.rewinds) == (None, 0, 1, 1)


def test_show_draws_steps_and_events() -> None:
    run = {
        "id": RUN, "name": "POST /research", "status": "completed", "version": "1",
        "attempts": 2, "events": 6, "entries": 17, "error": None,
        "created_at": "2026-11-21T10:00:00+00:00", "updated_at": "2026-11-21T10:00:01+00:00",
    }  # fmt: skip
    shown = text(render.run_view(run, timeline.read(JOURNAL)))
    for part in (
        RUN,
        "POST /research",
        "completed",
        "plan",
        "search",
        "failed",
        "5 items",
        "━",
        '("tea")',
    ):
        assert part in shown
    table = text(render.runs_table([run], datetime(2026, 11, 21, 11, tzinfo=UTC)))
    assert RUN in table
    assert "1 h 0 min ago" in table


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0.4, "400 µs"), (12, "12 ms"), (1500, "1.5 s"), (62_000, "1 min 2 s"), (2 * 864e5, "2 days")],
)
def test_durations_are_short(ms: float, said: str) -> None:
    assert render.duration(ms) == said


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        ("Hello ", "message", "Hello "),
        ('{"text":" tea"}', "message", " tea"),
        ('"quoted"', "message", "quoted"),
        (
            '{"object":"chat.completion.chunk","choices":[{"delta":{"content":"x"}}]}',
            "message",
            "x",
        ),
        ('{"object":"chat.completion.chunk","choices":[]}', "message", ""),
        ("[DONE]", "message", ""),
        ("12", "message", "12"),
        ('{"a":1,"b":2}', "message", None),
        ('{"text":"x"}', "progress", None),
    ],
)
def test_tokens_are_told_from_data(data: str, name: str, said: str | None) -> None:
    assert readable(Event(data, name, "", 1)) == said


def test_what_a_model_writes_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream: Any = None  # asked for at a rewind only
    Printer(raw=False).item(Event("\x1b[2Jhello\n", "message", "", 1), stream)
    assert capsys.readouterr().out == "\ufffd[2Jhello\n"


def test_attach_help_and_every_command_has_one() -> None:
    for name in cli.commands:
        result = durable(name, "--help")
        assert result.exit_code == 0, name
        assert "Usage: cli " + name in result.output


@pytest.mark.parametrize(
    "command", [["runs"], ["show", RUN], ["attach", RUN], ["cancel", "last"], ["doctor"]]
)
def test_nobody_listening_is_explained(command: list[str]) -> None:
    result = durable(*command, "--url", "http://127.0.0.1:9")  # the discard port
    assert result.exit_code == 1
    assert "No answer from http://127.0.0.1:9 (nobody listens there)" in result.output
    assert "durable run module:app" in result.output
    assert "Traceback" not in result.output


def test_several_workers_are_refused_with_the_reason() -> None:
    result = durable("run", "app:app", "--workers", "2")
    assert result.exit_code == 2
    assert "one worker" in result.output


def test_a_header_needs_a_colon() -> None:
    assert "is not NAME:VALUE" in durable("runs", "-H", "nonsense").output


@pytest.mark.parametrize("absent", ["click", "rich"])
def test_a_missing_extra_says_the_pip_line(absent: str) -> None:
    program = (
        f"import sys; sys.modules[{absent!r}] = None; sys.argv = ['durable'];"
        "from durable_endpoints.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install "durable-endpoints[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


# --- doctor


def findings(path: Path) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(path)}


def test_doctor_before_the_first_start(tmp_path: Path) -> None:
    found = findings(tmp_path / "d.db")
    assert found["database"].grade == "note"
    assert found["owner"].found == "nobody has opened it yet"
    assert found["sync"].grade in ("ok", "warn")
    assert list(tmp_path.iterdir()) == []  # and it leaves nothing behind


def test_doctor_on_a_used_database(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    database = sqlite3.connect(path)
    database.execute("pragma journal_mode = wal")
    database.execute("create table t (x)")
    lock = path.with_name("d.db.lock")
    lock.write_text("pid 4711\n")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = findings(path)
        assert "a running process (pid 4711)" in found["owner"].found
    assert findings(path)["owner"].found.startswith("none; the last one (pid 4711) was killed")
    lock.write_text("clean\n")
    assert "left in order" in findings(path)["owner"].found
    assert found["journal_mode"].found.startswith("wal")
    assert path.name in found["database"].found
    database.close()


def test_doctor_on_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "d.db").write_text("x" * 200)
    result = durable("doctor", str(tmp_path / "d.db"))
    assert result.exit_code == 1
    assert "is no SQLite database" in result.output
    assert durable("doctor", str(tmp_path / "nowhere" / "d.db")).exit_code == 1


def test_doctor_knows_the_releases_with_the_wal_reset_bug() -> None:
    assert doctor.sqlite_version((3, 51, 2)).grade == "note"
    assert "WAL-reset" in doctor.sqlite_version((3, 40, 1)).found
    assert doctor.sqlite_version((3, 51, 3)).grade == "ok"


def observed(arrivals: dict[int, float]) -> buffering.Observed:
    return buffering.Observed(200, {}, min(arrivals.values(), default=None), arrivals)


def test_a_live_stream_is_told_from_a_buffered_one() -> None:
    made = [1000.0 + 50 * n for n in range(60)]
    live = observed({n: 3.0 + 50 * max(0, n - 9) for n in range(60)})
    assert [f.grade for f in buffering.judge(live, made)] == ["ok", "ok"]
    clumps = observed({n: 3.0 + 1000 * (max(0, n - 9) // 20) for n in range(60)})
    grades = {f.what: f for f in buffering.judge(clumps, made)}
    assert grades["events"].grade == "warn"
    assert "proxy_buffering off" in grades["events"].advice
    silent = buffering.judge(buffering.Observed(200, {}), made)
    assert [f.grade for f in silent] == ["warn"]
    few = buffering.judge(observed({1: 3.0, 2: 3.0}), made)
    assert few[-1].grade == "note"
