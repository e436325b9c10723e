"""The console in Chromium: every page and action, by mouse and by key, alive and inert."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import Watched, shot
from tests.console.runs import begun, ended, waiting
from tests.console.seed import many_runs
from tests.support.server import Server
from tests.surface.wire import until, until_status

pytestmark = pytest.mark.browser

FIRST_PAINT_MS = 300
PAINTED = """() => new Promise(resolve => {
    const entries = performance.getEntriesByName("first-contentful-paint");
    if (entries.length) return resolve(entries[0].startTime);
    new PerformanceObserver(list => {
        for (const entry of list.getEntriesByName("first-contentful-paint")) {
            resolve(entry.startTime);
        }
    }).observe({ type: "paint", buffered: true });
})"""

# What a stranger, or a model, may put into any field (research: one test each, never acted on).
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "</pre></script><svg/onload=alert(1)>",
    "' onmouseover='alert(1)",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "<a href=javascript:alert(1)>x</a><iframe src=http://evil.example></iframe>",
    '<div hx-get="/_durable/" hx-trigger="load" hx-on:click="alert(1)">x</div>',
    "<style>*{display:none}</style><base href=http://evil.example/>",
    "{{ 7 * 7 }} ${7*7} {% raise %}",
    "exe.\u202egnp \u2066hidden\u2069 zero\u200bwidth",
    "\x1b[31mred\x1b[0m \x1b]52;c;ZXZpbA==\x07 \x1b]8;;http://evil.example\x1b\\link",
    "=cmd|' /C calc'!A0",
    "data: x\n\nevent: durable.done\ndata: {}\n\n",
]


def run_url(run_id: str, tail: str = "") -> str:
    return f"/_durable/console/runs/{run_id}{tail}"


def release(server: Server, name: str) -> None:
    (server.directory / name).touch()


# --- the list


def test_the_list_lives(page: Page, client: httpx.Client, server: Server) -> None:
    page.goto("/_durable/")
    run_id = begun(client, "/ask", params={"hold": "list"})
    row = page.locator(f"#r-{run_id}")
    expect(row.locator(".status")).to_have_text("running")
    release(server, "list")
    expect(row.locator(".status")).to_have_text("completed")
    expect(page.locator(".signal")).to_have_text("live")
    shot(page, "runs")


def test_searching_and_filtering(page: Page, client: httpx.Client) -> None:
    mine = ended(client, "/ask", headers={"x-user": "searched@example.com"})
    other = ended(client, "/echo", content="x")
    page.goto("/_durable/")
    page.keyboard.press("/")
    expect(page.get_by_label("Search for a run")).to_be_focused()
    page.keyboard.type("searched@")
    page.keyboard.press("Enter")
    expect(page.locator(f"#r-{mine}")).to_be_visible()
    expect(page.locator(f"#r-{other}")).to_have_count(0)
    page.wait_for_url("**q=searched%40**")
    assert "principal" not in page.url
    page.get_by_role("link", name="Clear").click()
    page.get_by_label("Begun within").select_option("5m")
    page.wait_for_url("**age=5m**")
    page.get_by_role("link", name=re.compile("^failed")).click()
    page.wait_for_url("**status=failed**")
    expect(page.locator(f"#r-{mine}")).to_have_count(0)
    expect(page.locator('.chips [aria-current="true"]')).to_contain_text("failed")


def test_everything_by_keyboard(page: Page, client: httpx.Client) -> None:
    run_id = ended(client, "/ask")
    page.goto("/_durable/")
    expect(page.locator(f"#r-{run_id}")).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("tbody tr:first-child a")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/runs/**")
    page.keyboard.press("2")
    page.wait_for_url("**/events")
    page.keyboard.press("1")
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]+$"))
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_empty()
    page.keyboard.press("+")
    page.wait_for_url("**from=**")
    page.keyboard.press("0")
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]+$"))
    page.keyboard.press("g")
    page.keyboard.press("h")
    page.wait_for_url("**/console/health")
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/_durable/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()


def test_keys_pressed_at_once_are_not_too_early(page: Page, client: httpx.Client) -> None:
    page.add_init_script(
        "addEventListener('load', () => {"
        " window.taken = Boolean(document.querySelector('[data-row][data-htmx-powered]')); });"
    )
    page.goto(run_url(ended(client, "/ask")))
    assert page.evaluate("window.taken")


# --- one run


def test_a_run_unfolds_before_ones_eyes(page: Page, client: httpx.Client, server: Server) -> None:
    run_id = begun(client, "/ask", params={"hold": "unfold"})
    page.goto(run_url(run_id))
    expect(page.locator(".run-head .status")).to_have_text("running")
    expect(page.locator(".trow.open .tlabel a")).to_have_text("answer")
    release(server, "unfold")
    expect(page.locator(".run-head .status")).to_have_text("completed")
    expect(page.locator(".trow .tlabel a").last).to_have_text("charge")
    expect(page.locator("summary", has_text="Delete")).to_be_visible()
    shot(page, "timeline")


def test_events_come_as_they_become_durable(
    page: Page, client: httpx.Client, server: Server
) -> None:
    run_id = begun(client, "/ask", params={"q": "<i>live</i>", "hold": "events"})
    page.goto(run_url(run_id, "/events"))
    expect(page.locator(".ev")).to_have_count(11)
    release(server, "events")
    expect(page.locator(".ev")).to_have_count(12)
    expect(page.locator(".ev .text").last).to_have_text('{"token":"The end."}')
    expect(page.locator("#follow")).to_have_text("That was the last one.")
    assert page.locator(".ev i").count() == 0
    shot(page, "events")
    page.get_by_role("link", name="Text").click()
    expect(page.locator(".wire")).to_contain_text('{"token":"The end."}')


def test_a_step_is_looked_at(page: Page, client: httpx.Client) -> None:
    run_id = ended(client, "/ask", params={"q": "look"})
    page.goto(run_url(run_id))
    page.get_by_role("link", name="search").click()
    panel = page.get_by_role("complementary", name="Step")
    expect(panel).to_contain_text('"look: document 2"')
    expect(panel.get_by_role("heading", name="Arguments")).to_be_visible()
    shot(page, "step")
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()
    page.get_by_role("link", name="Request").click()
    expect(page.locator(".call").first).to_contain_text("POST /ask?q=look")
    shot(page, "request")
    page.get_by_role("link", name="Journal").click()
    expect(page.locator("tr.kind-attempt")).to_have_count(2)
    page.locator("tr.kind-attempt a").first.click()
    expect(page.locator("#detail")).to_contain_text("the provider hung up")
    shot(page, "journal")
    page.keyboard.press("Escape")
    with page.expect_download() as found:
        page.get_by_role("link", name="Download JSON").click()
    assert found.value.suggested_filename == f"run-{run_id}.json"


def test_a_recovered_run_shows_it(browser: Browser, tmp_path: Path) -> None:
    with Server("tests.apps.console:app", tmp_path) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            run_id = begun(client, "/ask", params={"hold": "on", "durable_events": "1"})
            until(
                "its stream has begun",
                lambda: client.get(f"/_durable/runs/{run_id}").json()["events"] > 9,
            )
            server.restart()
            release(server, "on")
            until_status(client, run_id, "completed")
        context = browser.new_context(base_url=server.url)
        watched = Watched(context.new_page(), server.url)
        watched.page.goto(run_url(run_id))
        expect(watched.page.locator(".facts")).to_contain_text("went ononce")
        expect(watched.page.locator(".marks")).to_contain_text("recovered: answer begins anew")
        expect(watched.page.locator("rect.try")).not_to_have_count(0)
        shot(watched.page, "recovered")
        watched.page.goto(run_url(run_id, "/events"))
        expect(watched.page.locator(".ev.gone")).not_to_have_count(0)
        shot(watched.page, "rewound")
        assert watched.trouble == []
        context.close()


# --- actions


def test_cancel_then_delete(page: Page, client: httpx.Client) -> None:
    run_id = begun(client, "/ask", params={"hold": "never"})
    page.goto(run_url(run_id))
    page.locator("summary", has_text="Cancel").click()
    page.get_by_role("button", name="Cancel this run").click()
    expect(page.get_by_role("status").filter(has_text="asked to stop")).to_be_visible()
    expect(page.locator(".run-head .status")).to_have_text("cancelled")
    page.locator("summary", has_text="Delete").click()
    shot(page, "delete")
    page.get_by_role("button", name="Delete this run").click()
    expect(page.get_by_role("status").filter(has_text="was deleted")).to_be_visible()
    expect(page.locator(f"#r-{run_id}")).to_have_count(0)
    page.goto("/_durable/console/activity")
    expect(page.locator("tbody tr", has_text=run_id)).to_have_count(2)
    shot(page, "activity")


def test_a_person_approves(page: Page, client: httpx.Client) -> None:
    run_id = waiting(client, "/approve")
    page.goto("/_durable/console/waiting")
    item = page.locator(f'li[id^="w-{run_id}"]')
    expect(item).to_contain_text("Refund order 7")
    item.locator("summary", has_text="Approve").click()
    item.get_by_label("Comment").first.fill("as agreed")
    page.wait_for_timeout(2500)  # a redraw must not take away what is being written
    expect(item.get_by_label("Comment").first).to_have_value("as agreed")
    shot(page, "waiting")
    item.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("status").filter(has_text="You approved")).to_be_visible()
    expect(page.locator(".run-head .status")).to_have_text("completed")
    answer = client.get(f"/_durable/runs/{run_id}/response").json()
    assert answer["comment"] == "as agreed"


def test_a_run_is_forked_with_another_result(page: Page, client: httpx.Client) -> None:
    run_id = ended(client, "/ask", params={"q": "forked"})
    page.goto(run_url(run_id))
    page.get_by_role("link", name="search").click()
    page.locator("#detail summary", has_text="another result").click()
    page.get_by_label("Result").fill('["forked: document 1", "other: document 2"]')
    page.get_by_role("button", name="Begin the fork").last.click()
    page.wait_for_url(lambda url: run_id not in url)  # its origin is completed, too
    expect(page.locator(".run-head .status")).to_have_text("completed")
    shot(page, "forked")
    page.get_by_role("link", name="Compare").click()
    expect(page.locator("tr.differs").first).to_contain_text("forked: document 0")
    shot(page, "compared")


def press(page: Page, label: str, button: str, **fields: str) -> None:
    """Unfold an action, fill in its form, and do it."""
    action = page.locator("details.action", has=page.locator("summary", has_text=label)).first
    action.locator("summary").click()
    for name, text in fields.items():
        action.locator(f"[name={name}]").fill(text)
    action.get_by_role("button", name=button).click()


def test_a_person_declines_and_a_signal_is_sent(page: Page, client: httpx.Client) -> None:
    run_id = waiting(client, "/approve")
    page.goto(run_url(run_id))
    press(page, "Decline", "Decline", comment="too late")
    expect(page.get_by_role("status").filter(has_text="You declined")).to_be_visible()
    expect(page.locator(".run-head .status")).to_have_text("completed")
    answer = client.get(f"/_durable/runs/{run_id}/response").json()
    assert (answer["approved"], answer["comment"]) == (False, "too late")
    expect(page.locator(".marks")).to_contain_text("the signal refund arrived from 127.0.0.1")
    shot(page, "declined")
    run_id = waiting(client, "/webhook")
    page.goto(run_url(run_id))
    press(page, "Send the signal", "Send the signal", data='{"paid": 7}')
    expect(page.locator(".run-head .status")).to_have_text("completed")
    assert client.get(f"/_durable/runs/{run_id}/response").json() == {"data": {"paid": 7}}


@pytest.mark.parametrize(
    ("label", "button", "fields", "status"),
    [
        ("Try the step again", "Try the step again", {}, "completed"),
        ("Give its result", "Give its result", {"data": '"given"'}, "completed"),
        ("Let it fail", "Let it fail", {}, "dead"),
    ],
)
def test_a_person_decides(
    page: Page, client: httpx.Client, server: Server, label: str, button: str,
    fields: dict[str, str], status: str,
) -> None:  # fmt: skip
    run_id = waiting(client, "/decide")
    release(server, f"mended-{run_id}")
    page.goto(run_url(run_id))
    shot(page, "decision")
    press(page, label, button, **fields)
    expect(page.locator(".run-head .status")).to_have_text(status)
    if status == "completed":
        told = "given" if fields else "mended"
        assert client.get(f"/_durable/runs/{run_id}/response").json() == {"doubtful": told}


def test_the_dead_go_on(page: Page, client: httpx.Client, server: Server) -> None:
    dead = [begun(client, "/dies") for _ in range(4)]
    for run_id in dead:
        until_status(client, run_id, "dead")
        release(server, f"mended-{run_id}")
    page.goto(run_url(dead[0]))
    press(page, "Let it go on", "Let it go on")
    expect(page.get_by_role("status").filter(has_text="The run goes on")).to_be_visible()
    expect(page.locator(".run-head .status")).to_have_text("completed")
    expect(page.locator(".marks")).to_contain_text("127.0.0.1 had the run go on")
    shot(page, "retried")
    page.goto("/_durable/?status=dead&name=POST /dies")
    shot(page, "dead")
    press(page, "Let it go on", "Let it go on")
    said = "done for 3, left as they are: 0"
    expect(page.get_by_role("status").filter(has_text=said)).to_be_visible()
    for run_id in dead[1:]:
        until_status(client, run_id, "completed")


def test_labels_lead_to_their_runs(page: Page, client: httpx.Client) -> None:
    mine = ended(client, "/labelled", json={"tenant": "acme", "plan": "pro"})
    other = ended(client, "/labelled", json={"tenant": "other"})
    page.goto("/_durable/")
    expect(page.locator(f"#r-{other} .label")).to_have_text(["tenant: other"])
    page.locator(f"#r-{mine} .label", has_text="tenant").click()
    page.wait_for_url("**label=tenant%3Aacme")
    expect(page.get_by_label("Label")).to_have_value("tenant:acme")
    expect(page.locator(f"#r-{mine}")).to_be_visible()
    expect(page.locator(f"#r-{other}")).to_have_count(0)
    shot(page, "labels")
    page.locator(f"#r-{mine} a.open").click()
    expect(page.locator(".run-head .label")).to_have_text(["plan: pro", "tenant: acme"])


def test_tokens_of_a_run(page: Page, client: httpx.Client) -> None:
    run_id = ended(client, "/models", json=["tiny-1", "tiny-2", "other"])
    page.goto(run_url(run_id))
    tokens = page.get_by_role("region", name="Tokens")
    expect(tokens.locator("tbody tr")).to_have_count(3)
    expect(tokens.locator("tr", has_text="tiny-1")).to_contain_text("1,200")
    expect(tokens.locator("tfoot")).to_contain_text("0.011700")
    shot(page, "tokens")


def test_health_shows_how_commits_go(page: Page, client: httpx.Client) -> None:
    page.goto("/_durable/console/health")
    ended(client, "/ask")
    card = page.locator(".chart-card", has_text="A commit takes")
    expect(card.locator(".big.now")).to_be_visible()  # within a sample or two, by itself
    expect(page.locator(".chart-card")).to_have_count(13)
    shot(page, "health")


# --- what strangers write


def test_hostile_text_stays_text(page: Page, client: httpx.Client) -> None:
    for text in (" | ".join(HOSTILE[:-1]), HOSTILE[-1]):
        run_id = ended(
            client, "/echo", content=text.encode(), headers={"x-odd": text.encode().hex()}
        )
        for tail in ("", "/events", "/events?as=text", "/request", "/journal", "/entries/2"):
            page.goto(run_url(run_id, tail))
            check_inert(page)
        page.goto(run_url(run_id))
        page.locator(".rows a").first.click()
        expect(page.locator("#detail h2")).to_be_visible()
        check_inert(page)
        shown = page.locator(".run-head .label").first
        expect(shown).to_contain_text("<img src=x" if "<img" in text else "data: x")
        shown.click()  # the label's own list
        expect(page.locator(f"#r-{run_id}")).to_be_visible()
        check_inert(page)
    for text in HOSTILE:
        seen = "".join(c for c in text if c >= " " and c != "\x7f")
        labels = {seen.replace(":", ";")[:64]: seen[:200], "plain": seen[:200]}
        run_id = ended(client, "/labelled", json=labels)
        page.goto(run_url(run_id))
        check_inert(page)
        expect(page.locator(".run-head .label")).to_have_count(2)
        page.locator(".run-head .label", has_text="plain").click()
        expect(page.locator(f"#r-{run_id} .label")).to_have_count(2)
        check_inert(page)
    failed = begun(client, "/fail", params={"reason": " ".join(HOSTILE)})
    until_status(client, failed, "failed")
    page.goto("/_durable/")
    check_inert(page)
    expect(page.locator(f"#r-{failed} .error")).to_contain_text("<img src=x onerror=alert(1)>")
    page.goto(run_url(failed))
    expect(page.locator(".run-head .error")).to_contain_text("exe.⟨U+202E⟩gnp ⟨U+2066⟩hidden")
    shot(page, "hostile")


def check_inert(page: Page) -> None:
    """Nothing but our own elements and handlers, and nothing unseen."""
    found = page.evaluate(
        r"""() => {
            const bad = [...document.querySelectorAll(
                "main img, main script, main iframe, main style, main base, main object, " +
                "main [style], main [onerror], main [onload], main [onmouseover]")].length;
            const links = [...document.querySelectorAll("main a[href]")]
                .map(a => new URL(a.getAttribute("href"), location).origin)
                .filter(origin => origin !== location.origin).length;
            const unseen = /[\u202a-\u202e\u2066-\u2069\u200b\u001b]/.test(
                document.documentElement.outerHTML);
            return [bad, links, unseen];
        }"""
    )
    assert found == [0, 0, False]


# --- size


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("large")
    many_runs(directory / "durable.db", 100_000)
    with Server("tests.apps.console:app", directory) as server:
        yield server


def first_paint_ms(page: Page, url: str) -> float:
    """Return the best of a few, for the machine may be busy with something else."""
    best = float("inf")
    for _ in range(5):
        page.goto(url)
        best = min(best, float(page.evaluate(PAINTED)))
        if best <= FIRST_PAINT_MS:
            break
    return best


def test_a_hundred_thousand_runs_and_ten_thousand_steps(browser: Browser, large: Server) -> None:
    context = browser.new_context(base_url=large.url)
    watched = Watched(context.new_page(), large.url)
    page = watched.page
    with httpx.Client(base_url=large.url, timeout=60) as client:
        run_id = ended(client, "/many", params={"n": 10_000})
    paths = {
        "list": "/_durable/",
        "filtered": "/_durable/?status=failed",
        "labelled": "/_durable/?label=tenant:t7",
        "run": run_url(run_id),
        "zoomed": run_url(run_id, "?from=100000&to=105000"),
        "journal": run_url(run_id, "/journal?from=9000"),
    }
    painted = {name: first_paint_ms(page, path) for name, path in paths.items()}
    print("first paint", painted)
    for name in (name for name, ms in painted.items() if ms > FIRST_PAINT_MS):
        # On a machine that is busy with other things, no page at all is painted in time: beside
        # one with three lines on it, now, this one is not slow.
        bare_ms = first_paint_ms(page, run_url("nothing"))
        again_ms = first_paint_ms(page, paths[name])
        assert again_ms <= max(FIRST_PAINT_MS, 2 * bare_ms), (name, again_ms, bare_ms, painted)
    page.goto(run_url(run_id))
    expect(page.locator(".tools")).to_contain_text("10,000 steps, by name and time")
    assert page.locator(".rows .trow").count() == 3
    shot(page, "ten-thousand-steps")
    page.goto("/_durable/")
    page.get_by_role("link", name="Older").click()
    expect(page.locator("tbody tr")).to_have_count(50)
    page.goto("/_durable/?q=nowhere")
    expect(page.locator(".pager")).to_contain_text("Searched back to")
    page.get_by_role("link", name="Search further").click()
    expect(page.locator(".pager")).to_contain_text("Searched back to")
    page.goto("/_durable/?label=tenant:t7&status=failed")
    assert page.locator("tbody tr").count() > 1
    assert [t for t in watched.trouble if "404" not in t] == []
    context.close()


# --- looks


@pytest.mark.parametrize("look", ["dark", "phone"])
def test_every_page_fits(browser: Browser, server: Server, client: httpx.Client, look: str) -> None:
    run_id = ended(
        client, "/ask", headers={"x-user": "a.very.long.principal.name@mail.example.com"}
    )
    asked = waiting(client, "/approve")
    labelled = ended(client, "/labelled", json={"n" * 64: "v" * 200, "tenant": "acme"})
    models = ended(client, "/models", json=["tiny-1", "other"])
    size = {"width": 375, "height": 812} if look == "phone" else {"width": 1280, "height": 860}
    context = browser.new_context(
        base_url=server.url, viewport=size, color_scheme="dark" if look == "dark" else "light"
    )
    watched = Watched(context.new_page(), server.url)
    tails = ("", "/events", "/request", "/journal", "/entries/2")
    paths = {"runs": "/_durable/", "waiting": "/_durable/console/waiting"}
    paths |= {"health": "/_durable/console/health", "activity": "/_durable/console/activity"}
    paths |= {f"run{tail.replace('/', '-')}": run_url(run_id, tail) for tail in tails}
    paths |= {"labelled": run_url(labelled), "models": run_url(models)}
    paths |= {"suspended": run_url(asked), "error": run_url("nothing")}
    for name, path in paths.items():
        watched.page.goto(path)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert not unlabelled(watched.page), name
        assert not faint(watched.page), name
        shot(watched.page, f"{look}-{name}")
    assert [t for t in watched.trouble if "404" not in t] == []
    context.close()


def unlabelled(page: Page) -> list[str]:
    """Return the controls and pictures that a screen reader could not name."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, " +
            "button, a[href], summary, svg[role=img]")].filter(element => {
            if (element.closest("[aria-hidden=true]")) return false;
            const label = element.getAttribute("aria-label") || element.textContent.trim()
                || [...(element.labels || [])].map(l => l.textContent.trim()).join("");
            return !label;
        }).map(element => element.outerHTML.slice(0, 200))"""
    )
    return found


def faint(page: Page) -> list[str]:
    """Return texts whose contrast to their background is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    found: list[str] = page.evaluate(
        """() => {
        const options = { willReadFrequently: true };
        const canvas = document.createElement("canvas").getContext("2d", options);
        const known = new Map();
        const rgba = colour => {
            if (!known.has(colour)) known.set(colour, measured(colour));
            return known.get(colour);
        };
        const measured = colour => {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const light = ([r, g, b]) => {
            const [x, y, z] = [r, g, b].map(v => v / 255)
                .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * x + .7152 * y + .0722 * z;
        };
        const behind = element => {
            for (let e = element; e; e = e.parentElement) {
                const colour = rgba(getComputedStyle(e).backgroundColor);
                if (colour[3] > 200) return colour;
            }
            return [255, 255, 255, 255];
        };
        const bad = [];
        for (const element of document.querySelectorAll("body *")) {
            const own = [...element.childNodes].some(n => n.nodeType === 3 && n.nodeValue.trim());
            if (!own || !element.checkVisibility() || element.closest("svg")) continue;
            const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
        }
        return bad;
    }"""
    )
    return found
