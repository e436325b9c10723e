"""Every example runs, and goes on exactly after kill -9."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_endpoints.client import Message
from tests.examples.example_processes import (
    EXAMPLES,
    WAIT_S,
    Model,
    Process,
    Serve,
    messages,
    offset,
    rest_of,
    until,
)

sys.path.insert(0, str(EXAMPLES))

import scripted_model

pytestmark = pytest.mark.crash

WORDS = 200
KILL_AFTER = 25
# Where the model stands still until its test has killed the server: else the whole answer might be
# there before, on a machine that is busy with something else.
HELD_AT = KILL_AFTER + 10


def crash_midway(
    server: Process, path: str, *, model: Model | None = None, method: str = "POST", **request: Any
) -> tuple[str, list[Message]]:
    """Start a run, kill -9 its server in mid-stream, start it again; return all its events."""
    if model is not None:
        model.stop_before(HELD_AT)
    with messages(server.url + path, method, **request) as (response, stream):
        assert response.status_code == 200, response.read()
        run_id = response.headers["durable-run-id"]
        seen = list(islice(stream, KILL_AFTER))
        server.kill()
        with pytest.raises(httpx.TransportError):  # an aborted body, not a clean end
            seen.extend(stream)
    assert KILL_AFTER <= len(seen) < WORDS
    if model is not None:
        model.go_on()
    server.start()
    seen += rest_of(server, run_id, seen[-1].id)
    assert [offset(message) for message in seen] == list(range(1, len(seen) + 1))
    return run_id, seen


def question(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def status_of(server: Process, run_id: str) -> str:
    return str(httpx.get(f"{server.url}/_durable/runs/{run_id}", timeout=WAIT_S).json()["status"])


def test_starlette_chat_goes_on_after_kill_9(serve: Serve, model: Model) -> None:
    server = serve("starlette_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")
    run_id, seen = crash_midway(server, "/chat", model=model, json={"prompt": "Why tea?"})
    assert "".join(m.data for m in seen) == scripted_model.reply(question("Why tea?"), WORDS)
    until(lambda: status_of(server, run_id) == "completed", "the run to be complete")
    stats = httpx.get(f"{model.url}/stats", timeout=WAIT_S).json()
    assert stats["calls"] == 2
    # The model was asked for the rest only, not for the whole answer again.
    assert stats["tokens"] < WORDS + 25


def test_starlette_chat_runs_without_a_model(serve: Serve) -> None:
    server = serve("starlette_chat:app")
    url = f"{server.url}/chat"
    with messages(url, "POST", json={"prompt": "Hello"}) as (response, stream):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert next(stream).data == "You"
        run_id = response.headers["durable-run-id"]
    httpx.post(f"{server.url}/_durable/runs/{run_id}/cancel", timeout=WAIT_S).raise_for_status()
    until(lambda: status_of(server, run_id) == "cancelled", "the run to be cancelled")


def test_fastapi_chat_remembers_once(serve: Serve, model: Model) -> None:
    server = serve("fastapi_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")
    user = {"X-User": "ada"}
    assert (
        httpx.post(
            f"{server.url}/threads/tea", json={"question": "Why?"}, timeout=WAIT_S
        ).status_code
        == 401
    )
    asked = {"question": "Why tea?"}
    run_id, seen = crash_midway(server, "/threads/tea", model=model, headers=user, json=asked)
    text = "".join(json.loads(message.data)["text"] for message in seen)
    assert text == scripted_model.reply(question("Why tea?"), WORDS)
    until(lambda: status_of(server, run_id) == "completed", "the run to be complete")
    history = httpx.get(f"{server.url}/threads/tea", headers=user, timeout=WAIT_S).json()
    assert history == [*question("Why tea?"), {"role": "assistant", "content": text}]
    assert (
        httpx.get(f"{server.url}/threads/tea", headers={"X-User": "bob"}, timeout=WAIT_S).json()
        == []
    )


def test_the_unchanged_app_goes_on_after_kill_9(serve: Serve) -> None:
    server = serve("wrapped:app", folder=EXAMPLES / "unchanged_app", REPORT_DELAY_S="0.05")
    path = "/report?days=12"
    plain = httpx.get(f"{server.url}/ports", timeout=WAIT_S)
    assert "durable-run-id" not in plain.headers
    run_id, seen = crash_midway(server, path, method="GET")
    rows = [json.loads(message.data) for message in seen]
    assert [(row["day"], row["port"]) for row in rows] == [
        (day, port) for day in range(12) for port in plain.json()
    ]
    until(lambda: status_of(server, run_id) == "completed", "the run to be complete")


def test_research_agent_searches_once(serve: Serve, model: Model) -> None:
    server = serve("research_agent:app", OPENAI_BASE_URL=f"{model.url}/v1")
    asked = {"question": "How do I compress files?"}
    run_id, seen = crash_midway(server, "/research", model=model, json=asked)
    assert seen[0].event == "plan"
    assert "compress" in json.loads(seen[0].data)
    assert seen[1].event == "notes"
    assert {"bz2", "lzma"} & set(json.loads(seen[1].data)["modules"])
    answer = "".join(message.data for message in seen if message.event == "message")
    assert answer.startswith("You asked: “Answer from these notes")
    assert len(answer.split()) == WORDS
    url = f"{server.url}/_durable/runs/{run_id}/journal?limit=500"
    entries = httpx.get(url, timeout=WAIT_S).json()["entries"]
    steps = [entry["key"].split()[-1] for entry in entries if entry["kind"] == "step"]
    assert steps.count("plan") == 1
    assert steps.count("search") == len(json.loads(seen[0].data))


def test_python_client_does_not_notice(serve: Serve, model: Model, tmp_path: Path) -> None:
    server = serve("starlette_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")
    output = tmp_path / "client.txt"
    model.stop_before(HELD_AT)
    with output.open("wb") as file:
        client = subprocess.Popen(
            [sys.executable, EXAMPLES / "python_client.py", "Why tea?", "--url", server.url],
            stdout=file, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        until(lambda: len(output.read_text().split()) > KILL_AFTER, "some words")
        server.kill()
        model.go_on()
        server.start()
        assert client.wait(60) == 0
    finally:
        client.kill()
        client.wait()
    first, _, rest = output.read_text().partition("\n")
    text, _, end = rest.rpartition("\n[")
    assert first.startswith("[") and end.startswith("complete")
    assert text == scripted_model.reply(question("Why tea?"), WORDS)


def test_sigterm_in_mid_stream_hands_the_run_over(serve: Serve, model: Model) -> None:
    server = serve("starlette_chat:app", "--drain", "0.1", OPENAI_BASE_URL=f"{model.url}/v1")
    request = {"json": {"prompt": "Why tea?"}}
    model.stop_before(HELD_AT)
    with messages(f"{server.url}/chat", "POST", **request) as (response, stream):
        run_id = response.headers["durable-run-id"]
        seen = list(islice(stream, KILL_AFTER))
        server.stop()
        with pytest.raises(httpx.TransportError):
            seen.extend(stream)
    assert "left 1 runs to the next process" in server.log.read_text()
    model.go_on()
    server.start()
    seen += rest_of(server, run_id, seen[-1].id)
    assert "".join(m.data for m in seen) == scripted_model.reply(question("Why tea?"), WORDS)


def test_sigterm_lets_a_short_answer_finish(serve: Serve, model: Model) -> None:
    server = serve("starlette_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")
    request = {"json": {"prompt": "Why tea?"}}
    with messages(f"{server.url}/chat", "POST", **request) as (_, stream):
        seen = list(islice(stream, KILL_AFTER))
        server.stop()
        seen.extend(stream)
    assert "".join(m.data for m in seen) == scripted_model.reply(question("Why tea?"), WORDS)
