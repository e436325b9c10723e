"""The commands of `durable` against a real server."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner, Result

from durable_endpoints.cli.commands import cli
from tests.examples.example_processes import (
    EXAMPLES,
    WAIT_S,
    WORD_S,
    Model,
    Process,
    Serve,
    messages,
    until,
)

WORDS = 200


@pytest.fixture
def server(serve: Serve, model: Model) -> Process:
    return serve("starlette_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")


def durable(server: Process, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--url", server.url])


@contextmanager
def streaming(
    server: Process, prompt: str = "Why tea?", *, held: Model | None = None, words: int = 10
) -> Iterator[str]:
    """A run that is streaming; its id. A `held` model goes on only after the first `words`."""
    body = {"prompt": prompt}
    if held is not None:
        held.stop_before(words)
    with messages(f"{server.url}/chat", "POST", json=body) as (response, stream):
        run_id = response.headers["durable-run-id"]
        next(stream)
        yield run_id
    if held is not None:
        held.go_on()


def complete(server: Process, run_id: str) -> None:
    def done() -> bool:
        run = httpx.get(f"{server.url}/_durable/runs/{run_id}", timeout=WAIT_S).json()
        return bool(run["status"] == "completed")

    until(done, "the run to be complete")


def test_runs_lists_what_there_is(server: Process, model: Model) -> None:
    assert durable(server, "runs").output == "No runs.\n"
    with streaming(server, held=model) as run_id:
        shown = durable(server, "runs").output
        assert run_id in shown
        assert "● running" in shown
        assert "No such runs." in durable(server, "runs", "--status", "failed").output
        assert run_id in durable(server, "runs", "-s", "failed", "-s", "running").output
        (line,) = durable(server, "runs", "--json").output.splitlines()
        assert json.loads(line)["id"] == run_id
        assert durable(server, "runs", "--name", json.loads(line)["name"]).output.count(run_id) == 1
    assert durable(server, "runs", "--status", "nonsense").exit_code == 2


def test_show_draws_the_steps(server: Process) -> None:
    with streaming(server) as run_id:
        assert "answer" in durable(server, "show", "last").output
    complete(server, run_id)
    shown = durable(server, "show", run_id[-6:]).output
    for part in (run_id, "● completed", "answer", f"{WORDS} items", "━", "events"):
        assert part in shown
    journal = json.loads(durable(server, "show", run_id, "--json").output)["journal"]
    assert [entry["seq"] for entry in journal] == list(range(len(journal)))
    nothing = durable(server, "show", "00000000-0000-7000-8000-000000000000")
    assert nothing.exit_code == 1
    assert "There is no run" in nothing.output
    assert "See them with: durable runs" in durable(server, "show", "nosuch").output


def test_attach_follows_to_the_end(server: Process) -> None:
    with streaming(server) as run_id:
        followed = durable(server, "attach", "last")
    assert followed.exit_code == 0
    assert followed.stdout.startswith("You asked: “Why tea?”")
    assert len(followed.stdout.split()) == WORDS
    assert "● completed" in followed.stderr
    raw = durable(server, "attach", run_id, "--raw", "--after", "198").stdout.splitlines()
    assert [line.split("\t")[:2] for line in raw] == [["199", "message"], ["200", "message"]]


@pytest.mark.crash
def test_attach_survives_the_server(server: Process, model: Model, tmp_path: Path) -> None:
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    with streaming(server, held=model) as run_id:
        command = "from durable_endpoints.cli import main; main()"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            watcher = subprocess.Popen(
                [sys.executable, "-c", command, "attach", run_id, "--url", server.url],
                stdout=stdout, stderr=stderr,
            )  # fmt: skip
        try:
            until(lambda: len(out.read_text().split()) > 5, "some words")
            server.kill()
            model.go_on()
            server.start()
            assert watcher.wait(60) == 0, err.read_text()
        finally:
            watcher.kill()
            watcher.wait()
    assert len(out.read_text().split()) == WORDS
    assert "… try 1 in" in err.read_text()
    assert "● completed" in err.read_text()


def test_cancel(server: Process, model: Model) -> None:
    with streaming(server, held=model) as run_id:
        assert "cancelled" in durable(server, "cancel", "last").output
        followed = durable(server, "attach", run_id)
        assert followed.exit_code == 1
        assert "cancelled" in followed.stderr
    with streaming(server, "Why not?") as run_id:
        pass
    complete(server, run_id)
    refused = durable(server, "cancel", run_id)
    assert refused.exit_code == 1
    assert "Nothing to cancel" in refused.output


@pytest.fixture
def slow_model(tmp_path: Path) -> Iterator[Model]:
    """A model that is at its answer for as long as somebody may look at it."""
    model = Model(tmp_path, delay_s=5 * WORD_S)
    model.start()
    yield model
    model.stop()


def test_doctor_measures_a_live_stream_only(serve: Serve, slow_model: Model) -> None:
    model = slow_model
    server = serve("starlette_chat:app", OPENAI_BASE_URL=f"{model.url}/v1")
    idle = durable(server, "doctor")
    assert idle.exit_code == 0
    assert "not measured" in idle.output
    for _ in range(3):  # the best of a few: a machine that is busy holds events back, too
        with streaming(server) as run_id:
            busy = durable(server, "doctor")
        durable(server, "cancel", run_id)
        if "live events" in busy.output and "held back" not in busy.output:
            break
    assert "first byte after" in busy.output
    assert "live events" in busy.output
    assert "held back" not in busy.output


@contextmanager
def holding_proxy(server: Process, hold_s: float) -> Iterator[str]:
    """A proxy that passes answers on `hold_s` after their first byte came, as some do."""
    port = urlsplit(server.url).port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends = [writer]
        both: list[asyncio.Task[None]] = []
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
            open_ends.append(to_server)
            both = [
                asyncio.create_task(pass_on(reader, to_server, 0)),
                asyncio.create_task(pass_on(from_server, writer, hold_s)),
            ]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for end in open_ends:
                end.close()
            for end in open_ends:  # before the loop is gone
                with suppress(OSError):
                    await end.wait_closed()

    async def pass_on(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, after_s: float
    ) -> None:
        while data := await source.read(65536):
            await asyncio.sleep(after_s)
            sink.write(data)

    started: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        proxy, done = await asyncio.start_server(serve, "127.0.0.1", 0), asyncio.Event()
        address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        started.put((address, asyncio.get_running_loop(), done))
        await done.wait()
        proxy.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    address, loop, done = started.get()
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()


def test_doctor_sees_a_proxy_that_holds_a_stream_back(serve: Serve) -> None:
    server = serve(
        "wrapped:app", "--drain", "0", folder=EXAMPLES / "unchanged_app", REPORT_DELAY_S="0.1"
    )
    with messages(f"{server.url}/report?days=20") as (response, stream):
        next(stream)
        run_id = response.headers["durable-run-id"]
        with holding_proxy(server, 1.0) as url:
            command = ["doctor", "--url", url, "--run", run_id]
            seen = CliRunner().invoke(cli, command)
    assert "! stream" in seen.output
    assert "held back on the way" in seen.output
    assert "proxy_buffering off" in seen.output


def test_another_server_is_told_from_ours(server: Process, model: Model) -> None:
    for arguments in (["runs"], ["show", "last"], ["doctor"]):
        result = durable(model, *arguments)
        assert result.exit_code == 1
        assert "Is DurableMiddleware in the app" in result.output
    assert "Is DurableMiddleware in the app" in durable(server, "runs", "--prefix", "/x").output
