"""Chromium, through reloads of the page and kills of the server, to the exact transcript."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.apps.streams import text_of
from tests.support.log import final_log, the_run
from tests.support.server import Server

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
WAIT_MS = 60_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(),
        reason="needs Chromium: install it, or name it in the variable CHROMIUM",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)  # five seconds otherwise, whatever the context's are
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    yield page
    context.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server("tests.apps.streams:app", tmp_path) as server:
        yield server


def release(server: Server) -> None:
    (server.directory / "release").touch()


def log(server: Server, *, control: bool) -> list[list[str | None]]:
    return [list(event) for event in final_log(server, the_run(server), control=control)]


def wait_for_events(page: Page, count: int) -> None:
    page.wait_for_function("count => window.transcript?.length >= count", arg=count)


def wait_for_state(page: Page, state: str) -> None:
    page.wait_for_function("state => window.run?.state === state", arg=state)


# --- the browser's own EventSource


def check_eventsource(server: Server, page: Page, count: int) -> None:
    page.wait_for_function("window.source.readyState === EventSource.CLOSED")  # by the 204
    transcript = page.evaluate("window.transcript")
    assert transcript == log(server, control=False)
    assert [data for _, data, _ in transcript] == [text_of(number) for number in range(count)]


@pytest.mark.crash
def test_eventsource_through_a_kill(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/eventsource?n=30&hold=20")
    wait_for_events(page, 20)
    server.restart()
    release(server)
    check_eventsource(server, page, 30)
    assert page.evaluate("window.opened") >= 2


def test_eventsource_through_a_reload(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/eventsource?n=30&hold=20")
    wait_for_events(page, 20)
    page.reload()
    page.wait_for_function("window.opened >= 1")
    release(server)
    check_eventsource(server, page, 30)


# --- our own client.js


def check_client(server: Server, page: Page) -> None:
    wait_for_state(page, "done")
    page.wait_for_function("window.ended === 'well'")
    assert page.evaluate("window.transcript") == log(server, control=True)
    assert page.evaluate("window.run.events.map(event => event.offset).join()")


@pytest.mark.crash
def test_client_through_a_kill(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=60&hold=20&pause_ms=2")
    wait_for_events(page, 20)
    server.kill()
    wait_for_state(page, "reconnecting")
    server.start()
    release(server)
    check_client(server, page)
    states = page.evaluate("window.states")
    assert states == ["connecting", "streaming", "reconnecting", "streaming", "done"]
    assert page.locator("#out").text_content() == "".join(text_of(n) for n in range(60))


def test_client_through_a_reload(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=60&hold=20&pause_ms=2")
    wait_for_events(page, 20)
    page.reload()
    wait_for_events(page, 20)
    release(server)
    check_client(server, page)
    page.reload()  # a finished run is there as well
    check_client(server, page)
    assert page.locator("#out").text_content() == "".join(text_of(n) for n in range(60))


@pytest.mark.crash
def test_client_through_a_reload_while_the_server_is_down(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=30&hold=20")
    wait_for_events(page, 20)
    server.kill()
    wait_for_state(page, "reconnecting")
    server.start()
    page.reload()
    wait_for_events(page, 20)
    release(server)
    check_client(server, page)


@pytest.mark.crash
def test_a_rewind_takes_back_what_the_page_shows(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?path=/again&n=6&hold=4")
    wait_for_events(page, 5)
    assert page.locator("#out").text_content() == "before [1.0][1.1][1.2][1.3]"
    server.restart()
    wait_for_events(page, 6)
    release(server)
    check_client(server, page)
    expected = "before " + "".join(f"[2.{n}]" for n in range(6)) + " after"
    assert page.locator("#out").text_content() == expected


def test_a_reload_before_the_answer_finds_the_same_run(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?path=/answer&hold=0")  # its answer waits for the release
    while not (server.directory / "attempts").exists():
        page.wait_for_timeout(10)
    page.reload()
    wait_for_state(page, "connecting")
    release(server)
    check_client(server, page)
    assert page.locator("#out").text_content() == '{"value":"kept"}'


def test_chunks_that_are_half_a_letter(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?path=/torn")
    check_client(server, page)
    assert page.locator("#out").text_content() == "é\r漢😀"


def test_stopping_a_run(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=10&hold=4")
    wait_for_events(page, 4)
    page.click("#stop")
    check_client(server, page)
    assert page.evaluate("window.run.status") == "cancelled"
    assert page.evaluate("window.stopped") in {"running", "cancelled"}


def test_coming_online_looks_at_once(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=10&hold=4")
    wait_for_events(page, 4)
    with page.expect_request("**/stream"):
        page.evaluate("window.dispatchEvent(new Event('online'))")
    release(server)
    check_client(server, page)


def test_silence_ends_a_connection(server: Server, page: Page) -> None:
    page.clock.install()
    page.goto(f"{server.url}/page/client?n=10&hold=4")
    wait_for_events(page, 4)
    with page.expect_request("**/stream"):
        page.clock.fast_forward(45_000)
    release(server)
    check_client(server, page)


def test_letting_go_and_coming_back(server: Server, page: Page) -> None:
    page.goto(f"{server.url}/page/client?n=10&hold=4")
    wait_for_events(page, 4)
    page.evaluate("window.run.detach()")
    page.wait_for_function("window.ended === 'well'")
    release(server)
    rest = page.evaluate(
        """async () => {
            const { attach, forget, reattach } = await import("/_durable/client.js");
            const offsets = [];
            for await (const { offset } of attach(window.run.runId, { after: 4 })) {
                offsets.push(offset);
            }
            const stored = { ...sessionStorage };
            forget("page");
            return { offsets, stored, forgotten: reattach("page") };
        }"""
    )
    assert rest == {
        "offsets": [5, 6, 7, 8, 9, 10],
        "stored": {"durable-endpoints:page": f'{{"runId":"{the_run(server)}"}}'},
        "forgotten": None,
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("path=/nowhere", "DurableError 404"),
        ("path=/undurable", "DurableError 200"),
        ("path=/answer&status=422", "DurableError 422"),
        ("path=/fails&n=3", "DurableError 0"),
    ],
)
def test_what_fails_is_told_at_once(server: Server, page: Page, query: str, expected: str) -> None:
    page.goto(f"{server.url}/page/client?{query}")
    wait_for_state(page, "failed")
    page.wait_for_function("window.ended !== undefined")
    assert page.evaluate("window.ended").startswith(expected)
    assert page.evaluate("window.states").count("reconnecting") == 0
