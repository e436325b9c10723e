"""A disk whose every sync takes 50 ms: a request pays for its commits, not for its steps.

The syncs of a real server process are counted by a shim (tests/faults/slow_fdatasync.c), so no
test here looks at a clock. They are as slow as that, though a disk's take 5 ms, so that a machine
which is busy with other things does not often stop a handler for as long as one of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

SHIM_SOURCE = Path(__file__).parents[1] / "faults" / "slow_fdatasync.c"
CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STEPS, SLOW_MS, REQUESTS = 20, 50, 10

pytestmark = [
    pytest.mark.skipif(
        CC is None, reason="no C compiler (cc, gcc or clang) to build the slow disk"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="the slow disk is an LD_PRELOAD shim"),
]

APP = """
import os
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from durable_endpoints import DurableMiddleware, durable, step

@step
async def one(number: int) -> int:
    return number

@step
async def tokens(count: int):
    for number in range(count):
        yield f"token{number};"

def done() -> None:  # tells the test, past the gate, that the handler has come to its end
    open(os.environ["DONE"], "x").close()

@durable
async def steps(request):
    total = sum([await one(n) for n in range((await request.json())["steps"])])
    done()
    return JSONResponse({"total": total})

@durable
async def stream(request):
    count = (await request.json())["steps"]
    async def body():
        async for token in tokens(count):
            yield token
        done()
    return StreamingResponse(body(), media_type="text/plain")

app = Starlette(
    routes=[Route("/steps", steps, methods=["POST"]), Route("/stream", stream, methods=["POST"])],
    middleware=[
        Middleware(DurableMiddleware, store=os.environ["STORE"], mode=os.environ["MODE"])
    ],
)
"""


@dataclass
class Server:
    """A uvicorn child on the slow disk."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    directory: Path

    @property
    def hold(self) -> Path:
        """While this file exists, syncs do not begin."""
        return self.directory / "hold"

    @property
    def done(self) -> Path:
        """Appears when a handler has come to its end."""
        return self.directory / "done"

    def syncs(self) -> int:
        log = self.directory / "syncs.log"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def ask(self, path: str, steps: int = STEPS) -> httpx.Response:
        self.done.unlink(missing_ok=True)
        response = self.client.post(path, json={"steps": steps})
        assert response.status_code == 200, response.text
        return response

    def wait_completed(self, response: httpx.Response) -> None:
        run_id = response.headers["durable-run-id"]
        wait_for(
            lambda: self.client.get(f"/_durable/runs/{run_id}").json()["status"] == "completed",
            f"run {run_id} to be completed",
        )

    def syncs_of(self, path: str) -> int:
        """Return the syncs from a request to the end of its run, as the store knows it."""
        before = self.syncs()
        self.wait_completed(self.ask(path))
        return self.syncs() - before


def wait_for(condition, what: str, limit_s: float = 30) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, f"waited {limit_s} s for {what}"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("shim") / "slow_fdatasync.so"
    assert CC is not None
    subprocess.run(
        [CC, "-O2", "-shared", "-fPIC", "-o", str(built), str(SHIM_SOURCE), "-ldl"], check=True
    )
    return built


@contextmanager
def serving(shim: Path, directory: Path, mode: str) -> Iterator[Server]:
    (directory / "slow_disk_app.py").write_text(APP)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)  # bound by us: no race for the port, and requests wait until it serves
    env = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "SLOW_SYNC_MS": str(SLOW_MS),
        "SLOW_SYNC_LOG": str(directory / "syncs.log"),
        "SLOW_SYNC_HOLD": str(directory / "hold"),
        "STORE": f"sqlite:///{directory}/durable.db",
        "MODE": mode,
        "DONE": str(directory / "done"),
    }
    command = [sys.executable, "-m", "uvicorn", "slow_disk_app:app", "--app-dir", str(directory)]
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--fd", str(listening.fileno()), "--log-level", "warning"],
            env=env, stdout=log, stderr=log, pass_fds=[listening.fileno()],
        )  # fmt: skip
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Server(process, client, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            print((directory / "server.log").read_text())


@pytest.fixture
def server(shim: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(shim, tmp_path, "optimistic") as found:
        found.wait_completed(found.ask("/steps"))  # the first one pays for opening the store
        yield found


@pytest.mark.parametrize("path", ["/steps", "/stream"])
def test_a_request_of_20_steps_pays_at_most_two_syncs(server: Server, path: str) -> None:
    counts = [server.syncs_of(path) for _ in range(REQUESTS)]
    # Two, unless the machine stopped the handler for longer than a sync: then its end waits
    # for one more. A commit a step would be 20.
    assert statistics.median(counts) <= 2, counts
    assert max(counts) <= 4, counts
    assert min(counts) >= 1, f"an answer left without a sync: {counts}"


def test_more_steps_cost_no_more_syncs(server: Server) -> None:
    before = server.syncs()
    server.wait_completed(server.ask("/steps", steps=1))
    one = server.syncs() - before
    before = server.syncs()
    server.wait_completed(server.ask("/steps", steps=500))
    # 500 steps take longer than one sync; what counts is that syncs do not follow steps.
    assert server.syncs() - before <= one + 20


@pytest.mark.parametrize("path", ["/steps", "/stream"])
def test_on_a_stalled_disk_the_handler_goes_on_and_nothing_leaves(
    server: Server, path: str
) -> None:
    before = server.syncs()
    server.hold.touch()
    received: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: received.append(server.ask(path)))
    asking.start()
    try:
        wait_for(server.done.exists, "the handler to run ahead of the disk")
        # All work is done, nothing is durable: not a byte may have left (I1).
        assert server.syncs() == before
        assert received == []
    finally:
        server.hold.unlink()
        asking.join(timeout=30)
    assert len(received) == 1
    server.wait_completed(received[0])
    # The sync that stalled, and at most two for what had gathered behind it.
    assert 1 <= server.syncs() - before <= 3


def test_strict_mode_pays_a_sync_a_step(shim: Path, tmp_path: Path) -> None:
    with serving(shim, tmp_path, "strict") as server:
        server.wait_completed(server.ask("/steps"))
        assert server.syncs_of("/steps") >= STEPS
