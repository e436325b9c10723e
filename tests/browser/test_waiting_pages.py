"""Runs that wait, in Chromium: signalled by a page, approved on another, over a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect

from tests.browser.test_browser_clients import WAIT_MS, browser, pytestmark
from tests.support.server import Server, free_port

__all__ = ["browser", "pytestmark"]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e<a href=javascript:alert(3)>"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    env = {"PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with Server("examples.approval:app", tmp_path, env=env, port=port) as server:
        yield server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


def ask(context: BrowserContext, server: Server, reason: str) -> Page:
    page = context.new_page()
    page.goto(server.url)
    page.fill("[name=reason]", reason)
    page.click("text=Ask for a refund")
    expect(page.locator("#badge")).to_have_text("waits for: approval “refund”")
    return page


@pytest.mark.crash
def test_a_refund_is_asked_for_and_approved(server: Server, context: BrowserContext) -> None:
    page = ask(context, server, "It came broken.")
    server.kill()
    expect(page.locator("#badge")).not_to_have_text("done")
    server.start()
    page.wait_for_function("document.querySelector('#badge').textContent.startsWith('waits')")
    with context.expect_page() as opened:
        page.locator("#open a").click()
    person = opened.value
    expect(person.locator("h1")).to_have_text("Approve: refund")
    expect(person.locator("main")).to_contain_text("Refund 240.00 for order A-17?")
    person.reload()  # looking is not deciding
    person.fill("#by", "Ann")
    person.fill("#comment", "Sorry for that.")
    person.click("text=Approve >> nth=-1")
    expect(person.locator("h1")).to_have_text("Approved")
    expect(page.locator("#badge")).to_have_text("done")
    said = page.locator("#said li")
    expect(said).to_have_count(4)
    expect(said.nth(2)).to_contain_text("Ann approved on ")
    expect(said.nth(3)).to_contain_text("Paid 240.00 back")
    expect(page.locator("#open li")).to_have_text("Nothing.")
    page.reload()
    expect(said).to_have_count(4)
    person.goto(person.url)
    expect(person.locator("main")).to_contain_text("It was approved by Ann on 20")


def test_what_is_asked_is_text_and_nothing_else(server: Server, context: BrowserContext) -> None:
    page = ask(context, server, HOSTILE)
    link = page.locator("#open a").get_attribute("href")
    page.close()
    person = context.new_page()
    dialogs: list[str] = []
    requests: list[str] = []
    refusals: list[str] = []

    def seen(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    person.on("dialog", seen)
    person.on("request", lambda request: requests.append(request.url))
    person.on("console", lambda message: refusals.append(message.text))
    person.goto(f"{server.url}{link}")
    expect(person.locator("main")).to_contain_text(HOSTILE.replace("\u202e", ""))
    assert person.locator("main img, main script, main a").count() == 0
    assert requests == [f"{server.url}{link}"]
    assert refusals == []
    # Even what were no text could do nothing: the policy lets nothing be loaded or run.
    person.evaluate("document.querySelector('main').innerHTML = '<img src=x onerror=alert(4)>'")
    while not any("Content Security Policy" in refusal for refusal in refusals):
        person.wait_for_timeout(10)
    assert dialogs == []


def test_a_page_signals_its_run(tmp_path: Path, context: BrowserContext) -> None:
    with Server("tests.apps.waiting:app", tmp_path) as server:
        page = context.new_page()
        page.goto(f"{server.url}/plain")
        found = page.evaluate(
            """async () => {
                const { durable } = await import("/_durable/client.js");
                const run = durable("/stream?waits=2", { method: "POST" });
                const until = (holds) =>
                    new Promise((resolve) => {
                        run.onchange = () => holds() && resolve();
                        run.onchange();
                    });
                await until(() => run.waiting);
                const told = run.waiting;
                const first = await run.signal("go", { n: 1 });
                await until(() => run.events.length === 2 && run.waiting);
                const second = await run.signal("go");
                await run.finished;
                const late = await run.signal("go").catch((error) => [error.status, error.type]);
                const texts = run.events.map((event) => event.data);
                return { told, first, second, texts, waiting: run.waiting, late };
            }"""
        )
    assert found["told"] == [{"kind": "signal", "name": "go", "until": None}]
    assert (found["first"], found["second"]) == ("taken", "taken")
    assert found["texts"] == ["asked", '{"n":1}', "null", "end"]
    assert found["waiting"] is None
    assert found["late"][0] == 409
    assert found["late"][1].endswith("/run-ended")
