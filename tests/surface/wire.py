"""Small helpers on the wire: events out of bytes, waiting for what the app noted down."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

WAIT_S = 20.0
Asked = dict[str, str | int]  # of a stream: how many events, and where it waits for which file
RUN_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
OUR_ID = re.compile(rf"({RUN_ID}):(\d+)-([0-9a-f]{{8}})")


class Event(NamedTuple):
    """One event of a stream, with the id that was last set on it."""

    id: str
    event: str
    data: str


def events_of(text: str) -> list[Event]:
    """Return the complete events of an SSE body."""
    found = []
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for block in text.split("\n\n")[:-1]:
        fields: dict[str, list[str]] = {"id": [], "event": [], "data": []}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name in fields:
                fields[name].append(value.removeprefix(" "))
        if fields["data"]:
            last = {name: values[-1] if values else "" for name, values in fields.items()}
            found.append(Event(last["id"], last["event"], "\n".join(fields["data"])))
    return found


def offset_of(event: Event) -> int:
    """Return the offset in an id of ours."""
    match = OUR_ID.fullmatch(event.id)
    assert match is not None, event
    return int(match[2])


def run_of(answer: httpx.Response) -> str:
    """Return the run id of an answer, which must have the two headers of a run."""
    run_id = answer.headers["durable-run-id"]
    assert re.fullmatch(RUN_ID, run_id)
    assert f"/runs/{run_id}/stream>" in answer.headers["link"]
    assert 'rel="durable-stream"' in answer.headers["link"]
    return str(run_id)


def until(what: str, holds: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait for a state to be observed; return what `holds` returned."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not after {timeout_s:g} s: {what}"
        time.sleep(0.01)
    return value


def noted(directory: Path, line: str) -> int:
    """Return how many times the app noted a line."""
    file = directory / "notes"
    return file.read_text().splitlines().count(line) if file.exists() else 0


def until_noted(directory: Path, line: str, times: int = 1) -> None:
    """Wait until the app has noted a line."""
    until(f"the note {line!r}", lambda: noted(directory, line) >= times)


def until_status(
    client: httpx.Client, run_id: str, *statuses: str, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Wait until a run has one of these statuses; return it."""

    def found() -> dict[str, Any] | None:
        run: dict[str, Any] = client.get(f"/_durable/runs/{run_id}", headers=headers).json()
        return run if run.get("status") in statuses else None

    run: dict[str, Any] = until(f"run {run_id} {' or '.join(statuses)}", found)
    return run


def is_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is a problem of this kind; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"].endswith(f"/{kind}"), problem
    assert problem["title"]
    assert problem["detail"]
    return problem
