"""Kills in the middle of what people and timers do to a run: signals, cancels, retries, deletes.

A script begins against a server that kills itself at one of the script's points, and goes on
against the next one, which is to die at the next point, and so on to the last, which lives.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
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

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]
CHAINS: Final = 2  # at a time
END_S: Final = 90.0
MET: Final = sometimes.SEEN[sometimes.CRASH]


class Client:
    """Somebody who does not give up while the server is down."""

    def __init__(self, http: httpx.AsyncClient, directory: Path, number: int) -> None:
        self.directory = directory
        self.number = number
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

    async def begin(self, path: str, key: str = "") -> str:
        """Begin a run; return its address."""
        key = f"client-{key or self.number}"
        headers = {"prefer": "respond-async", "idempotency-key": key}
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            try:
                async with self._http.stream("POST", path, headers=headers) as answer:
                    if "durable-run-id" in answer.headers:
                        return "/_durable/runs/" + answer.headers["durable-run-id"]
                    found = await answer.aread()
                    assert answer.status_code in (500, 503), (answer.status_code, found)
                if answer.status_code == 500:  # it is dead already
                    newest = (await self.ask("GET", "/_durable/runs")).json()["runs"][0]
                    return f"/_durable/runs/{newest['id']}"
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


async def suspended(client: Client) -> str:
    """Wake one of two runs that left memory, and die: the other one is still suspended."""
    runs = [await client.begin("/everything?ms=5", f"{client.number}-{n}") for n in range(2)]
    for run in runs:
        await client.status(run, "suspended", "completed")
    for run in runs:
        await client.ask("POST", f"{run}/signals/go", json=1, headers={"idempotency-key": "s"})
        await client.status(run, "completed")
    return "completed"


async def undone(client: Client) -> str:
    return await client.status(await client.begin("/undone?ms=5"), "failed")


async def cancelled(client: Client) -> str:
    run = await client.begin("/text?n=400&ms=200")
    answer = await client.ask("POST", f"{run}/cancel")
    assert answer.status_code in (200, 202), answer.text
    return await client.status(run, "cancelled")


async def revived(client: Client) -> str:
    mended = f"mended-{client.number}"
    run = await client.begin(f"/dead?mended={mended}")
    await client.status(run, "dead", "completed")
    (client.directory / mended).touch()
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
        Kind.RECEIVED, Kind.UNDOABLE, Kind.ATTEMPT, Kind.LABEL,
    )),
    "suspended": (suspended, both(Kind.SIGNAL)),
    "undone": (undone, both(Kind.FAILED)),
    "cancelled": (cancelled, both(Kind.CANCEL, Kind.CANCELLED)),
    "revived": (revived, both(Kind.RETRY, Kind.STEP_FAILED, Kind.GAVE_UP)),
    "deleted": (deleted, ("delete.begin", "delete.done")),
}  # fmt: skip


async def go_through(directory: Path, name: str, points: Sequence[str]) -> list[str]:
    """Go through a script again and again, killed at each point; return what is wrong."""
    script, _ = SCRIPTS[name]
    server = CrashServer(directory, env={"BACKOFF_S": "0.1"})
    wrong: list[object] = []
    evidence = []
    going: list[asyncio.Task[str]] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=10) as http:
        try:
            for number, point in enumerate(points):
                server.arm(DURABLE_CRASH_AT=point)
                starting = asyncio.create_task(server.begin())
                going.append(asyncio.create_task(script(Client(http, directory, number))))
                if not await _dies(server, starting, going):
                    await asyncio.to_thread(server.kill)
                    wrong.append(f"{point} did not come up")
                stored = read_store(server.store)
                evidence.append(take_evidence(directory, stored))
                wrong += check_effects(directory, stored)
                for run in stored.values():
                    MET.update(run.paths())
                MET[sometimes.at(point)] += 1
            server.arm()
            await server.begin()
            await asyncio.gather(*going)
        finally:
            for one in going:
                one.cancel()
            await asyncio.gather(*going, return_exceptions=True)
            if server.running:
                await asyncio.to_thread(server.kill)
    wrong += check_executions(directory, evidence)
    for run in read_store(server.store).values():
        wrong += check_journal(run, executed_by(directory, run.run_id))
        MET.update(run.paths())
        if name == "undone":
            wrong += check_undone(run)
    return list(map(str, wrong))


async def _dies(
    server: CrashServer, starting: asyncio.Task[None], going: list[asyncio.Task[str]]
) -> bool:
    """Wait for the end of a server; False if all scripts were at theirs before."""
    await asyncio.gather(starting, return_exceptions=True)  # it may be gone before it was ready
    while server.running and not all(one.done() for one in going):
        await asyncio.sleep(0.02)
    if server.running:
        return False
    await server.gone(-signal.SIGKILL)
    return True


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
        points = SCRIPTS[name][1]
        chains = [points[number::CHAINS] for number in range(CHAINS)]
        found = await asyncio.gather(
            *(go_through(tmp_path / str(n), name, chain) for n, chain in enumerate(chains))
        )
        return [wrong for part in found for wrong in part]

    assert asyncio.run(all_points()) == []
