"""The demo as a person uses it: ask, press the button, and read the sentence to its end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from durable_endpoints.cli.commands import cli
from durable_endpoints.demo import weights
from durable_endpoints.demo.chat import TOKENS_MAX
from tests.examples.example_processes import (
    EXAMPLES,
    WAIT_S,
    Model,
    Process,
    messages,
    offset,
    rest_of,
)
from tests.support.server import free_port

sys.path.insert(0, str(EXAMPLES))

import scripted_model

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ASKED = [{"role": "user", "content": "Tell me a story about a lighthouse keeper."}]
HAS_MODEL = importlib.util.find_spec("xllamacpp") is not None and weights.find() is not None


def start_demo(tmp_path: Path, **env: str) -> Process:
    port = free_port()
    command = [
        sys.executable, "-c", "from durable_endpoints.cli import main; main()", "demo",
        "--no-browser", "--port", str(port), "--store", str(tmp_path / "demo.db"),
    ]  # fmt: skip
    log = tmp_path / "demo.log"
    return Process(command, port, log, cwd=tmp_path, env=env, ready="/status").start()


@pytest.fixture
def demo(tmp_path: Path, model: Model) -> Iterator[Process]:
    process = start_demo(tmp_path, OPENAI_BASE_URL=f"{model.url}/v1", MODEL="scripted")
    yield process
    assert process.stop() == 0, process.log.read_text()


def status(demo: Process) -> dict[str, Any]:
    return dict(httpx.get(f"{demo.url}/status", timeout=30).json())


def crash(demo: Process) -> None:
    """Press the button: the server dies before it can answer, and a new one comes."""
    pid = status(demo)["pid"]
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{demo.url}/crash?pid={pid}", timeout=30)
    assert status(demo)["pid"] != pid  # asked at once: the question waits in the socket's queue
    assert (
        httpx.post(f"{demo.url}/crash?pid={pid}", timeout=WAIT_S).status_code == 409
    )  # as a browser might


def ask_and_crash(demo: Process, crashes: int, model: Model | None = None) -> str:
    """Ask, kill the server several times on the way, and return the whole answer.

    The scripted model waits for each crash: else its answer might be whole before.
    """
    body = {"messages": ASKED}
    if model is not None:
        model.stop_before(40)
    with messages(f"{demo.url}/chat", "POST", json=body) as (response, stream):
        assert response.status_code == 200, response.read()
        run_id = response.headers["durable-run-id"]
        seen = list(islice(stream, 20))
        crash(demo)
        with pytest.raises(httpx.TransportError):
            seen.extend(stream)
    for _ in range(crashes - 1):
        url = f"{demo.url}/_durable/runs/{run_id}/stream"
        if model is not None:
            model.stop_before(len(seen) + 40)
        with messages(url, headers={"Last-Event-ID": str(seen[-1].id)}) as (_, stream):
            seen.extend(islice(stream, 20))
            crash(demo)
    if model is not None:
        model.go_on()
    seen += rest_of(demo, run_id, seen[-1].id)
    assert [offset(message) for message in seen] == list(range(1, len(seen) + 1))
    return "".join(json.loads(message.data)["text"] for message in seen)


def test_the_sentence_survives_two_crashes(demo: Process, model: Model) -> None:
    text = ask_and_crash(demo, 2, model)
    assert text == scripted_model.reply(ASKED, TOKENS_MAX)
    said = demo.log.read_text()
    assert said.count("killed by SIGKILL (9)") == 2
    assert said.count("a new one answers after") == 2


def test_the_button_is_for_its_own_page_only(demo: Process) -> None:
    url = f"{demo.url}/crash?pid={status(demo)['pid']}"
    answer = httpx.post(url, headers={"Sec-Fetch-Site": "cross-site"}, timeout=WAIT_S)
    assert answer.status_code == 403
    assert status(demo)["up_s"] > 0


def test_the_page_is_all_there(demo: Process) -> None:
    page = httpx.get(demo.url, timeout=WAIT_S)
    assert page.headers["content-type"].startswith("text/html")
    assert "Crash the server" in page.text
    for name, kind in (("chat.js", "javascript"), ("strip.js", "javascript"), ("chat.css", "css")):
        assert kind in httpx.get(f"{demo.url}/{name}", timeout=WAIT_S).headers["content-type"]
    assert (
        "javascript"
        in httpx.get(f"{demo.url}/_durable/client.js", timeout=WAIT_S).headers["content-type"]
    )
    assert httpx.get(f"{demo.url}/app.py", timeout=WAIT_S).status_code == 404


@pytest.mark.parametrize("absent", ["fastapi", "xllamacpp"])
def test_a_missing_extra_says_the_pip_line(absent: str) -> None:
    program = (
        f"import sys; sys.modules[{absent!r}] = None; sys.argv = ['durable', 'demo'];"
        "from durable_endpoints.cli import main; main()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_BASE_URL"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert 'pip install "durable-endpoints[demo]"' in done.stdout
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told(model: Model) -> None:
    result = CliRunner(env={"OPENAI_BASE_URL": model.url}).invoke(
        cli, ["demo", "--no-browser", "--port", model.url.rpartition(":")[2]]
    )
    assert result.exit_code == 1
    assert "durable demo --port" in result.output


def test_a_model_that_refuses_is_told(tmp_path: Path, model: Model) -> None:
    demo = start_demo(tmp_path, OPENAI_BASE_URL=f"{model.url}/nowhere", MODEL="scripted")
    try:
        with messages(f"{demo.url}/chat", "POST", json={"messages": ASKED}) as (_, stream):
            (event,) = stream
        assert "answered 404" in json.loads(event.data)["error"]
    finally:
        demo.stop()


def test_an_answer_goes_on_when_the_demo_was_stopped(tmp_path: Path, model: Model) -> None:
    environment = {"OPENAI_BASE_URL": f"{model.url}/v1", "MODEL": "scripted"}
    demo = start_demo(tmp_path, **environment)
    try:
        body = {"messages": ASKED}
        with messages(f"{demo.url}/chat", "POST", json=body) as (response, stream):
            run_id = response.headers["durable-run-id"]
            next(stream)
            assert demo.stop() == 0, demo.log.read_text()
        demo.start()
        seen = rest_of(demo, run_id, None)
        text = "".join(json.loads(message.data)["text"] for message in seen)
        assert text == scripted_model.reply(ASKED, TOKENS_MAX)
    finally:
        demo.stop()


@pytest.mark.skipif(not HAS_MODEL, reason=f"needs xllamacpp and {weights.PACKAGE}")
def test_a_real_model_goes_on_letter_by_letter(tmp_path: Path) -> None:
    """At temperature 0 an answer with two crashes is the answer without any."""
    demo = start_demo(tmp_path, TEMPERATURE="0", DURABLE_DEMO_PACE_MS="0")
    try:
        assert status(demo)["local"]
        broken = ask_and_crash(demo, 2)
        with messages(f"{demo.url}/chat", "POST", json={"messages": ASKED}) as (_, stream):
            whole = "".join(json.loads(message.data)["text"] for message in stream)
        assert len(whole) > 200
        assert broken == whole
    finally:
        assert demo.stop() == 0, demo.log.read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_shows_the_sentence_go_on(demo: Process, model: Model) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # milliseconds; five seconds otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context()
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(demo.url)
        prompt = page.locator("#prompts button").first
        asked = [{"role": "user", "content": prompt.inner_text()}]
        model.stop_before(40)
        prompt.click()
        events = page.locator("#events")
        for survived in ("1", "2"):
            before = int(events.inner_text()) if events.inner_text().isdigit() else 0
            model.stop_before(before + 40)  # the answer must not be whole before the crash
            page.wait_for_function(
                "n => Number(document.getElementById('events').textContent) > n + 20", arg=before
            )
            page.locator("#crash").click()
            expect(page.locator("#crashes")).to_have_text(survived, timeout=30_000)
        model.go_on()
        other = context.new_page()
        other.goto(demo.url)
        expect(other.locator(".answer")).to_contain_text("You asked")
        page.reload()
        expect(page.locator("#crashes")).to_have_text("2")
        expect(page.locator("#status")).to_have_text("completed", timeout=60_000)
        expect(page.locator(".answer .bolt")).to_have_count(2)
        expect(page.locator(".answer .end")).to_contain_text("died 2 times")
        whole = scripted_model.reply(asked, TOKENS_MAX)
        for tab in (page, other):
            expect(tab.locator("#status")).to_have_text("completed", timeout=60_000)
            text = tab.evaluate(
                "[...document.querySelector('.answer').childNodes]"
                ".filter(n => n.nodeType === 3).map(n => n.data).join('')"
            )
            assert text == whole
        assert not errors
        browser.close()
