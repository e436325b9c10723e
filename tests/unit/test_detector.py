"""The detector with the real libraries, against a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from durable_endpoints import detector as room
from durable_endpoints.detector import LLM_HOSTS, Detector, UnannotatedEffect, install, uninstall

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
CHANGING = ("POST", "PUT", "PATCH", "DELETE")


class Server(ThreadingHTTPServer):
    """Answers 204 to everything and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(204 if self.path != "/moved" else 307)
        if self.path == "/moved":
            self.send_header("Location", "/there")
            self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = senders()
    yield
    uninstall()
    assert senders() == before
    assert room._importing not in sys.meta_path


def senders() -> list[Any]:
    return [
        httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request,
        httpx2.HTTPTransport.handle_request, httpx2.AsyncHTTPTransport.handle_async_request,
        aiohttp.BaseConnector.connect, requests.adapters.HTTPAdapter.send,
    ]  # fmt: skip


def by_httpx(method: str, url: str) -> None:
    with httpx.Client() as client:
        client.request(method, url, follow_redirects=True)


def by_httpx2(method: str, url: str) -> None:
    with httpx2.Client() as client:
        client.request(method, url, follow_redirects=True)


def by_async_httpx(method: str, url: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient() as client:
            await client.request(method, url, follow_redirects=True)

    asyncio.run(main())


def by_async_httpx2(method: str, url: str) -> None:
    async def main() -> None:
        async with httpx2.AsyncClient() as client:
            await client.request(method, url, follow_redirects=True)

    asyncio.run(main())


def by_aiohttp(method: str, url: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session, session.request(method, url):
            pass

    asyncio.run(main())


def by_requests(method: str, url: str) -> None:
    with requests.Session() as session:
        session.request(method, url)


Send = Callable[[str, str], None]
CLIENTS: list[tuple[str, Send]] = [
    ("httpx", by_httpx), ("httpx", by_async_httpx), ("httpx2", by_httpx2),
    ("httpx2", by_async_httpx2), ("aiohttp", by_aiohttp), ("requests", by_requests),
]  # fmt: skip
clients = pytest.mark.parametrize(
    ("library", "send"), CLIENTS, ids=[send.__name__ for _, send in CLIENTS]
)


def watch(
    *allowed: str, inside: Callable[[], bool] = lambda: True
) -> tuple[Detector, list[tuple[str, str, str]]]:
    """Install a detector that keeps its reports."""
    reports: list[tuple[str, str, str]] = []
    return install(
        allowed, inside_plain_step=inside, report=lambda *report: reports.append(report)
    ), reports


@clients
def test_what_changes_something_is_reported_and_sent(
    library: str, send: Send, server: Server
) -> None:
    _, reports = watch()
    for method in METHODS:
        send(method, f"{server.url}/orders/7?token=secret#part")
    assert reports == [(library, method, f"{server.url}/orders/7") for method in CHANGING]
    assert server.asked == [f"{method} /orders/7?token=secret" for method in METHODS]


@clients
def test_outside_plain_steps_nothing_is_reported(library: str, send: Send, server: Server) -> None:
    _, reports = watch(inside=lambda: False)
    send("POST", server.url)
    assert reports == []


@clients
def test_a_redirect_is_seen_where_it_leads(library: str, send: Send, server: Server) -> None:
    _, reports = watch()
    send("POST", f"{server.url}/moved")
    assert reports == [(library, "POST", f"{server.url}{path}") for path in ("/moved", "/there")]


@clients
def test_a_report_that_raises_keeps_the_request_from_being_sent(
    library: str, send: Send, server: Server
) -> None:
    def refuse(*report: str) -> None:
        raise LookupError(report)

    install(inside_plain_step=lambda: True, report=refuse)
    with pytest.raises(LookupError):
        send("POST", server.url)
    send("GET", server.url)
    assert server.asked == ["GET /"]


def test_credentials_in_a_url_are_not_reported(server: Server) -> None:
    _, reports = watch()
    by_httpx("DELETE", server.url.replace("//", "//user:password@") + "/x")
    assert reports == [("httpx", "DELETE", f"{server.url}/x")]


def test_what_stays_in_the_process_is_not_reported() -> None:
    _, reports = watch()
    transport = httpx.MockTransport(lambda request: httpx.Response(204))
    with httpx.Client(transport=transport) as client:
        client.post("http://shop.example/orders")
    assert reports == []


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.openai.com/v1/responses", True), ("https://API.OpenAI.com/v1", True),
        ("https://api.openai.com.:443/v1", True), ("https://api.anthropic.com/v1/messages", True),
        ("https://mine.openai.azure.com/openai", True),
        ("https://generativelanguage.googleapis.com/v1beta", True),
        ("https://bedrock-runtime.eu-west-1.amazonaws.com/model/x/invoke", True),
        ("https://api.mistral.ai/v1", True), ("https://api.cohere.com/v2", True),
        ("https://api.groq.com/openai/v1", True), ("https://openrouter.ai/api/v1", True),
        ("https://api.openai.com.evil.example/v1", False), ("https://xapi.openai.com/v1", False),
        ("https://openai.azure.com/x", False), ("https://s3.eu-west-1.amazonaws.com/x", False),
        ("https://storage.googleapis.com/x", False), ("https://evil.example/api.openai.com", False),
        ("https://api.openai.com@evil.example/", False),
        ("http://localhost:8000/", False), ("http://127.0.0.1/", False),
        ("http://[::1]:80/", False),
    ],
)  # fmt: skip
def test_the_hosts_allowed_by_default(url: str, allowed: bool) -> None:
    reports: list[tuple[str, str, str]] = []
    looking = Detector(LLM_HOSTS, lambda: True, lambda *report: reports.append(report))
    looking.look("httpx", "post", url)
    assert (not reports) == allowed


@pytest.mark.parametrize("pattern", ["127.0.0.1", "127.0.0.1:{port}", "127.*", "*"])
def test_hosts_can_be_allowed(pattern: str, server: Server) -> None:
    _, reports = watch(pattern.format(port=server.server_port))
    by_requests("POST", server.url)
    assert reports == []
    uninstall()
    _, reports = watch("127.0.0.1:1", "localhost", "::1")
    by_requests("POST", server.url)
    assert len(reports) == 1


def test_an_ipv6_address_is_reported_as_one() -> None:
    reports: list[tuple[str, str, str]] = []
    Detector((), lambda: True, lambda *report: reports.append(report)).look(
        "httpx", "POST", "http://[::1]:81/x?y"
    )
    Detector(["::1"], lambda: True, lambda *report: reports.append(report)).look(
        "httpx", "POST", "http://[::1]:81/x?y"
    )
    assert reports == [("httpx", "POST", "http://[::1]:81/x")]


# --- the usual report -------------------------------------------------------------------------


def post_in_a_helper(send: Send, url: str) -> None:
    send("POST", url)


@contextmanager
def caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def effects(found: list[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    """Return ours: the garbage of other tests may be collected, and told of, meanwhile."""
    return [warning for warning in found if warning.category is UnannotatedEffect]


@clients
def test_a_warning_names_place_host_and_method_once(
    library: str, send: Send, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    install(inside_plain_step=lambda: True)
    with caught() as found, caplog.at_level(logging.WARNING, "durable_endpoints"):
        for _ in range(3):
            post_in_a_helper(send, f"{server.url}/services/secret-in-the-path")
        post_in_a_helper(lambda _, url: send("PUT", url), server.url)
    told = effects(found)
    assert len(told) == 2
    text = str(told[0].message)
    for part in (f"127.0.0.1:{server.server_port}", "POST", library, "@effect"):
        assert part in text
    assert told[0].filename == __file__
    assert Path(__file__).read_text().splitlines()[told[0].lineno - 1].strip() != ""
    records = [record for record in caplog.records if record.name == "durable_endpoints"]
    assert len(records) == 2
    assert "secret" not in text + records[0].getMessage()


def test_each_place_is_warned_of(server: Server) -> None:
    install(inside_plain_step=lambda: True)
    with caught() as found:
        for _ in range(2):
            requests.post(server.url, timeout=5)
            requests.post(server.url, timeout=5)
    told = effects(found)
    assert len({warning.lineno for warning in told}) == len(told) == 2


def test_where_warnings_are_errors_nothing_is_sent_at_any_time(server: Server) -> None:
    install(inside_plain_step=lambda: True)
    for _ in range(2):
        with pytest.raises(UnannotatedEffect):
            requests.post(server.url, timeout=5)
    assert server.asked == []


def test_the_places_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "DETECTOR_PLACES_MAX", 3)
    warn = room.Warn()
    with caught() as found:
        for n in range(9):
            warn("httpx", "POST", f"http://host{n}/")
    assert len(effects(found)) == 3


# --- putting it in and taking it out ----------------------------------------------------------


def test_two_installations_are_taken_back_one_by_one(server: Server) -> None:
    one, reports_one = watch()
    two, reports_two = watch("127.0.0.1")
    three, reports_three = watch()
    by_httpx("POST", server.url)
    assert (len(reports_one), len(reports_two), len(reports_three)) == (1, 0, 1)
    uninstall(one)
    uninstall(one)
    by_httpx("POST", server.url)
    assert (len(reports_one), len(reports_two), len(reports_three)) == (1, 0, 2)
    uninstall(two)
    uninstall(three)
    by_httpx("POST", server.url)
    assert (len(reports_one), len(reports_two), len(reports_three)) == (1, 0, 2)


def test_the_patch_of_somebody_else_over_ours_is_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = requests.adapters.HTTPAdapter.send
    watch()
    ours = requests.adapters.HTTPAdapter.send

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", theirs)
    uninstall()
    assert requests.adapters.HTTPAdapter.send is theirs
    by_requests("POST", server.url)
    _, reports = watch()
    by_requests("POST", server.url)
    assert len(reports) == 1
    monkeypatch.undo()
    uninstall()
    assert requests.adapters.HTTPAdapter.send is original


LATE = """
import json, sys
from durable_endpoints import detector
import importlib.util

before = set(sys.modules)
assert not {"httpx2", "aiohttp", "requests"} & before, "an import of ours brings the library in"
reports = []
detector.install([], inside_plain_step=lambda: True, report=lambda *report: reports.append(report))
assert not {"httpx2", "aiohttp", "requests"} & set(sys.modules)
assert importlib.util.find_spec("requests") is not None

import asyncio, httpx, httpx2, aiohttp, requests, inspect
url = sys.argv[1]
httpx.post(url)
httpx2.post(url)
requests.post(url)

async def main():
    async with httpx.AsyncClient() as client:
        await client.put(url)
    async with aiohttp.ClientSession() as session, session.delete(url):
        pass

asyncio.run(main())
assert "exec_module" not in vars(requests.__spec__.loader)
assert inspect.getsource(requests)
detector.uninstall()
requests.post(url)
print(json.dumps(reports))
"""


def test_libraries_imported_later_are_watched_and_none_is_imported(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATE, server.url + "/"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [report[:2] for report in json.loads(done.stdout)] == [
        ["httpx", "POST"], ["httpx2", "POST"], ["requests", "POST"], ["httpx", "PUT"],
        ["aiohttp", "DELETE"],
    ]  # fmt: skip
    assert len(server.asked) == 6


def test_a_library_that_is_not_there_stays_not_there() -> None:
    code = (
        "import sys\n"
        "from durable_endpoints import detector\n"
        "detector.install(inside_plain_step=lambda: True)\n"
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
        "try:\n    import requests\n"
        "except ModuleNotFoundError:\n    print('none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("none\n", "")
