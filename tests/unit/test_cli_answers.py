"""The commands for waiting and dead runs, without a server: what they show and refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from durable_endpoints.cli import answers, render, timeline
from durable_endpoints.cli.commands import cli

RUN = "01934f6e-7c1a-7000-8000-00000000002a"
NOW = datetime(2026, 11, 21, 11, tzinfo=UTC)


def durable(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def text(renderable: Any) -> str:
    console = Console(width=200, file=None, highlight=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def run(**more: Any) -> dict[str, Any]:
    return {
        "id": RUN, "name": "POST /refunds", "status": "suspended", "version": "1", "attempts": 1,
        "events": 2, "entries": 9, "error": None, "waiting": None, "wake_at": None, "parent": None,
        "created_at": "2026-11-21T10:00:00+00:00", "updated_at": "2026-11-21T10:00:01+00:00",
        **more,
    }  # fmt: skip


REFUND = {"kind": "approval", "name": "refund", "until": "2026-11-24T11:00:00+00:00"}
NO_STEPS = timeline.read([])


def test_what_a_run_waits_for_is_shown() -> None:
    waiting = run(waiting=[REFUND], wake_at=REFUND["until"])
    table = text(render.runs_table([waiting, run(status="running")], NOW))
    assert "waits for" in table
    assert "approval refund, 3 days left" in table
    view = text(render.run_view(run(waiting=[REFUND], wake_at=REFUND["until"], parent="me"),
                                NO_STEPS, NOW))  # fmt: skip
    for part in ("waits for", "approval refund", "wakes", "2026-11-24", "parent", "me"):
        assert part in view


def test_what_waits_for_nothing_shows_nothing_of_it() -> None:
    shown = text(render.runs_table([run(status="running")], NOW))
    assert "waits for" not in shown
    view = text(render.run_view(run(), NO_STEPS, NOW))
    assert not any(part in view for part in ("waits for", "wakes", "parent"))


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("2026-11-21T11:00:30+00:00", "timer sleep, 30.0 s left"),
        ("2026-11-21T10:59:59+00:00", "timer sleep, due"),
        (None, "timer sleep"),
    ],
)
def test_what_is_left_of_a_wait(until: str | None, said: str) -> None:
    waits = [{"kind": "timer", "name": "sleep", "until": until}]
    found = render.waits(run(waiting=waits, wake_at=until), NOW.timestamp() * 1000)
    assert found == said


def test_an_old_servers_runs_are_shown_too() -> None:
    old = {key: value for key, value in run().items() if key not in ("waiting", "wake_at")}
    assert RUN in text(render.runs_table([old], NOW))


def test_open_approvals_are_a_table() -> None:
    asked: list[dict[str, Any]] = [
        {
            "run_id": RUN, "kind": "approval", "name": "refund", "summary": "240 EUR\nto Ann?",
            "since": "2026-11-21T10:00:00+00:00", "until": REFUND["until"], "link": "/x",
        },
        {
            "run_id": RUN, "kind": "decision", "name": "pay", "summary": None,
            "since": "2026-11-21T10:59:00+00:00", "until": None,
        },
    ]  # fmt: skip
    shown = text(render.approvals_table(asked, NOW))
    for part in (RUN, "refund", "240 EUR", "to Ann?", "1 h 0 min ago", "3 days", "decision"):
        assert part in shown
    assert "/x" not in shown  # a link decides: it is no matter for a screen


def test_dead_runs_say_what_they_died_of() -> None:
    dead = run(status="dead", error="ConnectionError: away\nfor good")
    shown = text(render.dead_table([dead], NOW))
    assert "ConnectionError: away for good" in shown
    assert "59 min 59 s ago" in shown


def test_what_comes_from_elsewhere_does_not_steer_the_terminal() -> None:
    nasty = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202eevil\x9b\r"
    wait = {"kind": "signal", "name": nasty, "until": None}
    one = run(name=nasty, error=nasty, waiting=[wait], version=nasty)
    asked = {"run_id": RUN, "kind": "approval", "name": nasty, "summary": nasty, "until": None,
             "since": "2026-11-21T10:00:00+00:00"}  # fmt: skip
    steps = timeline.read(
        [{"kind": "step", "at": "2026-11-21T10:00:00+00:00", "key": f"0 {nasty}", "took_us": 1,
          "args": f"[{nasty}]"}]
    )  # fmt: skip
    shown = "".join(
        text(part)
        for part in (
            render.runs_table([one]), render.run_view(one, steps), render.dead_table([one]),
            render.approvals_table([asked]),
        )
    )  # fmt: skip
    assert "evil" in shown
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(shown)


def test_a_timeline_shows_waits_and_tries() -> None:
    def entry(kind: str, second: int, key: str) -> dict[str, Any]:
        at = f"2026-11-21T10:00:{second:02}+00:00"
        return {"kind": kind, "at": at, "key": key, "took_us": 0, "args": ""}

    found = timeline.read(
        [
            entry("started", 0, ""), entry("intent", 1, "0 pay"), entry("attempt", 2, "0 pay"),
            entry("intent", 3, "0 pay"), entry("step", 4, "0 pay"),
            entry("wait", 5, "1 approval:refund"), entry("received", 9, "1 approval:refund"),
            entry("timer", 9, "2 sleep"), entry("fired", 11, "2 sleep"), entry("wait", 12, "3 go"),
        ]
    )  # fmt: skip
    spans = [(s.name, s.start_ms, s.end_ms, s.waited, s.restarts) for s in found.spans]
    assert spans == [
        ("pay", 1000, 4000, False, 1), ("approval:refund", 5000, 9000, True, 0),
        ("sleep", 9000, 11000, True, 0), ("go", 12000, None, True, 0),
    ]  # fmt: skip
    shown = text(render.run_view(run(), found, NOW))
    for part in ("2 tries", "waited", "waits", "approval:refund"):
        assert part in shown


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["signal", RUN, "go", "{"], "is no JSON"),
        (["signal", RUN, "go", "yes"], "Text needs quotes"),
        (["dead", "retry"], "Name one RUN, or all"),
        (["dead", "drop", RUN, "--all"], "Name one RUN, or all"),
        (["dead", "retry", RUN, "--name", "x"], "--name is for --all"),
    ],
)
def test_what_makes_no_sense_is_refused(command: list[str], said: str) -> None:
    result = durable(*command)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    "command",
    [["signal", RUN, "go"], ["retry", "last"], ["dead"], ["dead", "list"], ["dead", "show", RUN],
     ["dead", "drop", "--all", "-y"], ["approvals"], ["approvals", "approve", "x"]],
)  # fmt: skip
def test_nobody_listening_is_explained(command: list[str]) -> None:
    result = durable(*command, "--url", "http://127.0.0.1:9")  # the discard port
    assert result.exit_code == 1
    assert "No answer from http://127.0.0.1:9 (nobody listens there)" in result.output


def test_every_subcommand_has_a_help() -> None:
    for group in (answers.dead, answers.approvals):
        for name in group.commands:
            result = durable(str(group.name), name, "--help")
            assert result.exit_code == 0
            assert f"{group.name} {name}" in result.output
