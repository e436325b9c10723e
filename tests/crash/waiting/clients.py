"""People and services around the app: they begin runs, answer and cancel them, never give up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import httpx

from tests.crash.workload import Gate

POLL_S: Final = 0.03
ENDED: Final = frozenset({"completed", "failed", "cancelled", "dead"})
JSON: TypeAlias = dict[str, Any]


@dataclass
class Sent:
    """A signal, and what its sender was told in the end: a status code."""

    name: str
    ident: str
    data: Any
    status: int = 0
    outcome: str = ""


@dataclass
class Story:
    """One run from outside."""

    path: str
    run_id: str = ""
    signals: list[Sent] = field(default_factory=list)
    cancelled: bool = False  # somebody was told that it will be
    status: str = ""
    error: str | None = None
    answer: Any = None
    whole: bool = False
    complaints: list[str] = field(default_factory=list)


class Clients:
    """`count` clients that tell stories until they are stopped, then finish what they began."""

    def __init__(self, url: str, seed: int, count: int) -> None:
        self.stories: list[Story] = []
        self.counts: Counter[str] = Counter()
        self._seed = seed
        self._count = count
        self._gate = Gate(url)
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._http = httpx.AsyncClient(
            base_url=url, timeout=httpx.Timeout(30, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )  # fmt: skip

    async def __aenter__(self) -> Clients:
        for number in range(self._count):
            self._tasks.append(asyncio.create_task(self._client(number)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    def check_alive(self) -> None:
        """Raise what a client died of."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def finish(self, timeout_s: float) -> list[Story]:
        """Let all come to their ends; returns the stories that did not."""
        self._stop.set()
        await asyncio.wait(self._tasks, timeout=timeout_s)
        self.check_alive()
        return [story for story in self.stories if not story.whole]

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/{number}")
        told = list(STORIES)
        count = 0
        while not self._stop.is_set():
            if not count % len(told):
                chance.shuffle(told)
            path = told[count % len(told)]
            story = Story(path)
            self.stories.append(story)
            self.counts[path] += 1
            await self._begin(story, f"{self._seed}-{number}-{count}")
            act = STORIES[path]
            if act is not None:
                await act(self, story, chance)
            await self._see_through(story)
            count += 1

    # --- requests that are repeated until they are answered

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask until there is an answer that is not "come back"."""
        while True:
            try:
                response = await self._http.request(method, path, **more)
            except httpx.TransportError:
                await self._gate.wait()
                continue
            if response.status_code not in (502, 503):
                return response
            await asyncio.sleep(POLL_S)

    async def _begin(self, story: Story, key: str) -> None:
        headers = {"prefer": "respond-async", "idempotency-key": key}
        response = await self.ask("POST", story.path, headers=headers)
        story.run_id = response.headers.get("durable-run-id", "")
        if not story.run_id:
            story.complaints.append(f"begun: {response.status_code} {response.text[:300]}")

    async def shown(self, story: Story) -> JSON:
        found: JSON = (await self.ask("GET", f"/_durable/runs/{story.run_id}")).json()
        return found

    async def signal(self, story: Story, name: str, data: Any) -> Sent:
        sent = Sent(name, f"{story.run_id[-8:]}-{len(story.signals)}", data)
        story.signals.append(sent)
        response = await self.ask(
            "POST", f"/_durable/runs/{story.run_id}/signals/{name}", json=data,
            headers={"idempotency-key": sent.ident},
        )  # fmt: skip
        sent.status = response.status_code
        if response.status_code in (200, 202):
            sent.outcome = response.json()["outcome"]
        elif response.status_code != 409:
            story.complaints.append(f"{name}: {response.status_code} {response.text[:300]}")
        return sent

    async def cancel(self, story: Story) -> None:
        response = await self.ask("POST", f"/_durable/runs/{story.run_id}/cancel")
        story.cancelled = response.status_code in (200, 202)

    async def until_waiting(self, story: Story, kind: str, name: str) -> bool:
        """Wait until the run waits for something; False if it is at its end before."""
        while True:
            shown = await self.shown(story)
            waits = shown.get("waiting") or []
            if any(wait["kind"] == kind and wait["name"] == name for wait in waits):
                return True
            if shown["status"] in ENDED:
                return False
            await asyncio.sleep(POLL_S)

    async def _see_through(self, story: Story) -> None:
        while story.run_id:
            shown = await self.shown(story)
            if shown["status"] in (*ENDED, "diverged"):
                story.status, story.error = shown["status"], shown["error"]
                break
            await asyncio.sleep(POLL_S)
        if story.status == "completed":
            response = await self.ask("GET", f"/_durable/runs/{story.run_id}/response")
            story.answer = response.json() if response.status_code == 200 else response.text
        story.whole = True


Act: TypeAlias = Callable[[Clients, Story, random.Random], Awaitable[None]]


async def _soon(chance: random.Random, most_s: float = 0.15) -> None:
    await asyncio.sleep(chance.random() * most_s)


async def _approve(clients: Clients, story: Story, chance: random.Random) -> None:
    await _soon(chance)
    await clients.signal(story, "approve", {"by": "kim"})


async def _items(clients: Clients, story: Story, chance: random.Random) -> None:
    for number in range(3):
        await _soon(chance, 0.05)
        await clients.signal(story, "item", number)


async def _go(clients: Clients, story: Story, chance: random.Random) -> None:
    await _soon(chance, 0.2)
    await clients.signal(story, "go", "now")


async def _decide(clients: Clients, story: Story, chance: random.Random) -> None:
    if chance.random() < 0.5:
        await clients.until_waiting(story, "approval", "refund")
    await clients.signal(story, "refund", {"approved": chance.random() < 0.5})
    if chance.random() < 0.5:
        await clients.signal(story, "refund", {"approved": True})


async def _again(clients: Clients, story: Story, _: random.Random) -> None:
    if await clients.until_waiting(story, "decision", "odd"):
        await clients.signal(story, "odd", {"action": "retry"})


async def _call_off(clients: Clients, story: Story, chance: random.Random) -> None:
    await _soon(chance, 0.3)
    await clients.cancel(story)


STORIES: Final[dict[str, Act | None]] = {
    "/refund": _approve,
    "/ordered": _items,
    "/naps": None,
    "/races": _go,
    "/at_once": _go,
    "/retries": None,
    "/gives_up": None,
    "/at_most_once": None,
    "/asks_back": None,
    "/approves": _decide,
    "/escalates": _again,
    "/saga": None,
    "/saga?fails=false": _call_off,
    "/parent": None,
    "/parent?holds=true": _call_off,
}
