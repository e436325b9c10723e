"""Kills in the middle of what people and timers do to a run: signals, cancels, retries, deletes.

Each script is gone through with a server that kills itself at one point of it, once; the script
goes on against the next server until it is at its end.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from durable_endpoints.records import Kind
from durable_endpoints.testing import Violation
from tests.crash.evidence import (
    Stored,
    check_effects,
    check_executions,
    check_journal,
    labels_of,
    read_executions,
    read_store,
    take_evidence,
)
from tests.crash.process import CrashServer
from tests.support import sometimes

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]
AT_A_TIME: Final = 3
END_S: Final = 40.0
MET: Counter[str] = Counter()


class Client:
    """Somebody who does not give up while the server is down."""

    def __init__(self, http: httpx.AsyncClient, directory: Path) -> None:
        self.directory = directory
        self._http = http

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask until there is an answer that is no 503."""
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            try:
                answer = await self._http.request(method, path, **more)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"{method} {path}: no answer within {END_S:g} s")

    async def begin(self, path: str) -> str:
        """Begin a run; return its address."""
        headers = {"prefer": "respond-async", "idempotency-key": "the-only-one"}
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            try:
                async with self._http.stream("POST", path, headers=headers) as answer:
                    if "durable-run-id" in answer.headers:
                        return "/_durable/runs/" + answer.headers["durable-run-id"]
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
        raise AssertionError(f"{path} cannot be begun within {END_S:g} s")

    async def status(self, run: str, *wanted: str) -> str:
        """Wait for a status."""
        until = time.monotonic() + END_S
        while True:
            found = str((await self.ask("GET", run)).json()["status"])
            if found in wanted:
                return found
            assert time.monotonic() < until, f"{run} is {found}, not {wanted}"
            await asyncio.sleep(0.02)


async def waits(client: Client) -> str:
    run = await client.begin("/everything?ms=5")
    await client.ask("POST", f"{run}/signals/go", json=1, headers={"idempotency-key": "s"})
    return await client.status(run, "completed")


async def undone(client: Client) -> str:
    return await client.status(await client.begin("/undone?ms=5"), "failed")


async def cancelled(client: Client) -> str:
    run = await client.begin("/json?ms=200")
    await client.status(run, "running")
    answer = await client.ask("POST", f"{run}/cancel")
    assert answer.status_code in (200, 202), answer.text
    return await client.status(run, "cancelled")


async def revived(client: Client) -> str:
    run = await client.begin("/dead")
    await client.status(run, "dead", "running", "completed")
    await client.status(run, "dead", "completed")
    (client.directory / "mended").touch()
    while await client.status(run, "dead", "running", "completed") == "dead":
        await client.ask("POST", f"{run}/retry")
    return await client.status(run, "completed")


async def deleted(client: Client) -> str:
    run = await client.begin("/json?n=2&ms=0")
    await client.status(run, "completed")
    while (answer := await client.ask("DELETE", run)).status_code not in (204, 410):
        assert answer.status_code == 409, answer.text
    assert (await client.ask("GET", run)).status_code == 410
    return "deleted"


def both(*kinds: Kind) -> tuple[str, ...]:
    return tuple(f"{kind.name.lower()}.{when}" for kind in kinds for when in ("begin", "done"))


SCRIPTS: Final[dict[str, tuple[Callable[[Client], Awaitable[str]], tuple[str, ...]]]] = {
    "waits": (waits, both(
        Kind.PATCH, Kind.TIMER, Kind.FIRED, Kind.INTENT, Kind.SPAWN, Kind.WAIT, Kind.SIGNAL,
        Kind.RECEIVED, Kind.UNDOABLE, Kind.ATTEMPT,
    )),
    "undone": (undone, both(Kind.FAILED)),
    "cancelled": (cancelled, both(Kind.CANCEL, Kind.CANCELLED)),
    "revived": (revived, both(Kind.RETRY, Kind.STEP_FAILED)),
    "deleted": (deleted, ("delete.begin", "delete.done")),
}  # fmt: skip


async def go_through(directory: Path, name: str, point: str) -> list[str]:
    """Go through a script, killed at a point; return what is wrong."""
    script, _ = SCRIPTS[name]
    server = CrashServer(directory, env={"BACKOFF_S": "0.1"})
    server.arm(DURABLE_CRASH_AT=point)
    await server.begin()
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as http:
        going = asyncio.create_task(script(Client(http, directory)))
        try:
            while server.running and not going.done():
                await asyncio.sleep(0.02)
            if server.running:
                await going
                return [f"{point} did not come up"]
            await server.gone(-signal.SIGKILL)
            stored = read_store(server.store)
            evidence = take_evidence(directory, stored)
            wrong = check_effects(directory, stored)
            MET[sometimes.at(point)] += 1
            server.arm()
            await server.begin()
            await going
        finally:
            going.cancel()
            if server.running:
                await asyncio.to_thread(server.kill)
    wrong += check_executions(directory, [evidence])
    for run in read_store(server.store).values():
        made = executed_by(directory, run.run_id)
        wrong += check_journal(run, made)
        MET.update(run.paths())
        if name == "undone":
            wrong += check_undone(run)
    return [f"{point}: {violation}" for violation in wrong]


def executed_by(directory: Path, run_id: str) -> dict[str, set[str]]:
    """Return the nonces that a run's steps made."""
    found: dict[str, set[str]] = defaultdict(set)
    for done in read_executions(directory):
        if done.run_id == run_id:
            found[done.label].add(done.nonce)
    return found


def check_undone(run: Stored) -> list[Violation]:
    """Each thing that was done was undone, last first."""
    labels = [label for entry in run.entries if entry.kind == Kind.STEP
              for label in labels_of(entry)]  # fmt: skip
    if labels != ["first", "second", "undo-second", "undo-first"]:
        return [Violation("I2", run.run_id, f"did {labels}")]
    return []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_survives_a_kill_at_each_of_its_points(name: str, tmp_path: Path) -> None:
    async def all_points() -> list[str]:
        turns = asyncio.Semaphore(AT_A_TIME)

        async def one(point: str) -> list[str]:
            async with turns:
                return await go_through(tmp_path / point, name, point)

        found = await asyncio.gather(*map(one, SCRIPTS[name][1]))
        return [wrong for part in found for wrong in part]

    assert asyncio.run(all_points()) == []
