"""Clients of the crash app: each begins runs, comes back until they are whole, and keeps proof."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx

from durable_endpoints.testing import Reader, Request, Transcript

POLL_S = 0.01


class Endpoint(NamedTuple):
    path: str
    stream: bool  # an event stream
    weight: int = 2
    control: bool | None = None  # whether to ask for control events; None: either
    signal: str | None = None  # what its runs wait for


ENDPOINTS = (
    Endpoint("/json", stream=False),
    Endpoint("/sync?n=6", stream=False, weight=1),
    Endpoint("/background", stream=False),
    Endpoint("/text", stream=False),
    Endpoint("/sse", stream=True, weight=4),
    Endpoint("/values", stream=True),
    Endpoint("/concurrent", stream=True, weight=3),
    Endpoint("/tokens/auto", stream=True, weight=2),
    # A reader without control events is told to begin anew; it has its place among the second ones.
    Endpoint("/tokens/restart", stream=True, control=True),
    Endpoint("/tokens/resume", stream=True, weight=2),
    Endpoint("/tokens/finalize", stream=True),
    Endpoint("/tokens/fail", stream=True),
    Endpoint("/tokens/hold", stream=True),
    Endpoint("/everything", stream=True, weight=3, signal="go"),
)


# What a crash can cut in a way that has to be decided by a policy.
CUT_STREAMS = tuple(endpoint for endpoint in ENDPOINTS if endpoint.path.startswith("/tokens"))


@dataclass
class Story:
    """One run from its clients' side."""

    path: str
    run_ids: set[str] = field(default_factory=set)
    transcripts: list[Transcript] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)  # whole answers, of those that are no stream
    parts: list[bytes] = field(default_factory=list)  # cut ones
    refusals: list[str] = field(default_factory=list)
    whole: bool = False

    def told(self) -> set[str]:
        """Return the run ids that its clients were told."""
        return self.run_ids | {t.run_id for t in self.transcripts if t.run_id}

    @property
    def run_id(self) -> str | None:
        """The run, if its clients were told of exactly one."""
        found = self.told()
        return next(iter(found)) if len(found) == 1 else None


class Gate:
    """Lets clients through while the server takes connections: one of them knocks for all."""

    def __init__(self, url: str) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._knocking: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        if self._knocking is None:
            self._knocking = asyncio.create_task(self._knock())
            self._knocking.add_done_callback(self._forget)
        await asyncio.shield(self._knocking)

    def _forget(self, _: asyncio.Task[None]) -> None:
        self._knocking = None

    async def _knock(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                _, writer = await asyncio.open_connection(self._host, int(self._port))
            except OSError:
                continue
            writer.close()
            return


class Workload:
    """Clients that work until they are told to stop, and then finish what they have begun."""

    def __init__(
        self, url: str, seed: int, *, clients: int, speed_ms: float = 20,
        endpoints: Sequence[Endpoint] = ENDPOINTS,
    ) -> None:  # fmt: skip
        self.stories: list[Story] = []
        self.counts: Counter[str] = Counter()
        self._url = url
        self._seed = seed
        self._clients = clients
        self._speed_ms = speed_ms
        self._endpoints = endpoints
        self._stop = asyncio.Event()
        self._gate = Gate(url)
        self._tasks: list[asyncio.Task[None]] = []
        self._http = httpx.AsyncClient(
            base_url=url, timeout=httpx.Timeout(30, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )  # fmt: skip

    async def __aenter__(self) -> Workload:
        for number in range(self._clients):
            chance = random.Random(f"{self._seed}/{number}")
            self._tasks.append(asyncio.create_task(self._client(number, chance)))
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
        """Let every client come to its end; returns the stories that did not, in time.

        Readers of a parked run wait for ever: once there is one, nobody waits for them long.
        """
        self._stop.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        left = set(self._tasks)
        while left and (remaining := deadline - loop.time()) > 0:
            _, left = await asyncio.wait(left, timeout=min(2, remaining))
            if left and await self._parked():
                deadline = min(deadline, loop.time() + 4)
        self.check_alive()
        return [story for story in self.stories if not story.whole]

    async def _parked(self) -> int:
        answer = await self._http.get("/_durable/runs", params={"status": "diverged"})
        return len(answer.json()["runs"])

    async def _client(self, number: int, chance: random.Random) -> None:
        weights = [endpoint.weight for endpoint in self._endpoints]
        count = 0
        while not self._stop.is_set():
            [endpoint] = chance.choices(self._endpoints, weights)
            story = Story(endpoint.path)
            self.stories.append(story)
            self.counts[endpoint.path] += 1
            mark = "&" if "?" in endpoint.path else "?"
            path = f"{endpoint.path}{mark}ms={self._speed_ms:g}"
            key = {"idempotency-key": f"{self._seed}-{number}-{count}"}
            count += 1
            opening = Request("POST", path, headers=key)
            if endpoint.stream or chance.random() < 0.3:
                await self._read(story, endpoint, opening, chance)
            else:
                await self._call(story, opening, chance)
            story.whole = True

    async def _read(
        self, story: Story, endpoint: Endpoint, opening: Request, chance: random.Random
    ) -> None:
        control = chance.random() < 0.5 if endpoint.control is None else endpoint.control
        transcript = Transcript("the first reader", control)
        story.transcripts.append(transcript)
        first = Reader(
            self._http, transcript, chance=chance, opening=opening,
            cut=chance.choice((0, 0, 0.05)), resend=chance.random() < 0.3,
            bare=chance.random() < 0.2, wait=self._gate.wait,
        )  # fmt: skip
        following = asyncio.create_task(first.follow())
        if endpoint.signal is not None:
            await self._signal(endpoint.signal, transcript, following, chance)
        if chance.random() < 0.4:
            while transcript.run_id is None and not following.done():
                await asyncio.sleep(POLL_S)
            second = Transcript("a second reader", chance.random() < 0.5, transcript.run_id)
            story.transcripts.append(second)
            if transcript.run_id is not None:
                reader = Reader(self._http, second, chance=chance, cut=0.02, wait=self._gate.wait)
                await reader.follow()
        await following

    async def _signal(
        self, name: str, transcript: Transcript, following: asyncio.Task[Transcript],
        chance: random.Random,
    ) -> None:  # fmt: skip
        """Send what a run waits for, as often as it takes, and sometimes once more."""
        while transcript.run_id is None and not following.done():
            await asyncio.sleep(POLL_S)
        if transcript.run_id is None:
            return
        await asyncio.sleep(chance.choice((0, 0.1, 0.5)))
        path = f"/_durable/runs/{transcript.run_id}/signals/{name}"
        left = chance.choice((1, 1, 2))
        while left:
            try:
                answer = await self._http.post(
                    path, json={"n": 1}, headers={"idempotency-key": "one"}
                )
            except httpx.TransportError:
                await self._gate.wait()
                continue
            if answer.status_code in (200, 202, 409):
                left -= 1
            elif answer.status_code == 503:
                await asyncio.sleep(POLL_S)
            else:
                raise AssertionError(f"{path}: {answer.status_code} {answer.text}")

    async def _call(self, story: Story, opening: Request, chance: random.Random) -> None:
        headers = dict(opening.headers)
        location = None
        if chance.random() < 0.2:
            headers["prefer"] = "respond-async"
        while not story.bodies:
            part = b""
            method, path = (opening.method, opening.path) if location is None else ("GET", location)
            try:
                async with self._http.stream(method, path, headers=headers) as response:
                    if "durable-run-id" in response.headers:
                        story.run_ids.add(response.headers["durable-run-id"])
                    async for chunk in response.aiter_raw():
                        part += chunk
                    if response.status_code == 202 and location is None:
                        location = response.headers["location"] + "/response"
                    elif response.status_code == 200:
                        story.bodies.append(part)
                        return
                    elif response.status_code not in (202, 503):
                        story.refusals.append(f"{response.status_code} {part[:500]!r}")
                        return
            except httpx.TransportError:
                if part:
                    story.parts.append(part)
            await self._gate.wait()
