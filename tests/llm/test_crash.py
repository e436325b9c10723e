"""kill -9 in the middle of models' answers, with the providers' own libraries."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from durable_endpoints.records import Kind
from durable_endpoints.testing import Reader, Request, Transcript, compare
from tests.crash.evidence import read_store
from tests.llm.conftest import Provider
from tests.llm.lives import LivesServer
from tests.llm.provider import word

pytestmark = pytest.mark.crash
N = 20
WORDS = [word(number) for number in range(N)]


@pytest.fixture(scope="module")
def server(
    running_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LivesServer]:
    env = {"PROVIDER": running_provider.url}
    with LivesServer("tests.llm.app:app", tmp_path_factory.mktemp("app"), env=env) as one:
        yield one


class Asking:
    """One run and its reader."""

    def __init__(
        self, http: httpx.AsyncClient, kind: str, tag: str, *, control: bool, **more: object
    ) -> None:
        self.kind, self.tag, self.control = kind, f"{tag}-{kind}-{control}", control
        self.transcript = Transcript(self.tag, control)
        body = json.dumps({"kind": kind, "tag": self.tag, "n": N, "pace": 8, **more}).encode()
        headers = {"idempotency-key": self.tag, "content-type": "application/json"}
        self.reader = Reader(
            http, self.transcript, chance=random.Random(1),
            opening=Request("POST", "/ask", body, headers),
        )  # fmt: skip
        self.task = asyncio.create_task(self.reader.follow())

    def got(self) -> int:
        return sum(seen.event == "text" for seen in self.transcript.standing())

    async def has(self, words: int) -> None:
        while self.got() < words and not self.task.done():
            await asyncio.sleep(0.001)

    def shown(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for seen in self.transcript.standing():
            found.setdefault(seen.event, []).append(seen.data)
        return found

    async def log(self, http: httpx.AsyncClient) -> Transcript:
        log = Transcript("the log", True, self.transcript.run_id)
        return await Reader(http, log, chance=random.Random(1)).follow()


def requests_of(provider: Provider) -> Counter[str]:
    """Count the requests by what they were for."""
    found: Counter[str] = Counter()
    for entry in provider.counted():
        what = (entry["model"] or "").rpartition("key=")[2] or f"continued {entry['path']}"
        found[what] += 1
    return found


def test_a_kill_after_every_chunk(provider: Provider, server: LivesServer) -> None:
    async def main() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as http:
            for k in range(1, N + 1):
                provider.forget()
                runs = [
                    Asking(http, "chat", f"k{k}", control=True),
                    Asking(http, "chat", f"k{k}", control=False),
                    Asking(http, "messages", f"k{k}", control=True),
                    Asking(http, "background", f"k{k}", control=False),
                ]
                await runs[(k - 1) % len(runs)].has(k)
                await asyncio.to_thread(server.kill)
                had = [run.got() for run in runs]
                stored = read_store(server.directory / "durable.db")
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(20):
                    await asyncio.gather(*(run.task for run in runs))
                counted = requests_of(provider)
                for run, seen in zip(runs, had, strict=True):
                    log = await run.log(http)
                    assert not [*run.transcript.violations, *compare(run.transcript, log)]
                    assert run.transcript.run_id is not None
                    kept = [entry.kind for entry in stored[run.transcript.run_id].entries]
                    judge(run, seen, kept, counted)

    asyncio.run(main())


def judge(run: Asking, seen: int, kept: list[Kind], counted: Counter[str]) -> None:
    """Look at what one run's reader saw in the end, and at what the provider was asked for it.

    `seen` is how many words the reader had when the process was killed, `kept` what the journal
    had then: the steps of the plan, of the answer's head and of the question, the answer's pieces.
    """
    shown, rewound = run.shown(), any(s.event == "durable.rewind" for s in run.transcript.seen)
    asked = {what: counted[f"{run.tag}/{what}"] for what in ("plan", "answer", "question")}
    durable = {
        "plan": kept.count(Kind.STEP) >= 1,
        "answer": Kind.STREAM_END in kept or (run.kind == "background" and Kind.ITEM in kept),
        "question": kept.count(Kind.STEP) >= 3,
    }
    where = f"{run.tag}: {seen} seen, kept {kept}, asked {asked}, shown {shown}"
    for what, times in asked.items():
        assert 1 <= times <= (1 if durable[what] else 2), f"{where}: {what}"
    assert (shown["plan"], shown["question"]) == (["w0 w1 "], ["w0 w1 w2 "]), where
    text = shown.get("text", [])
    assert (text == WORDS[: len(text)] and len(text) >= seen) or run.control, where
    if run.kind == "background":
        assert text == WORDS and not rewound, where
    elif run.control:
        assert text == WORDS and "interrupted" not in shown, where
    else:
        assert not rewound and (text == WORDS or "interrupted" in shown), where
        assert asked["answer"] == 1 or not seen, where


@pytest.mark.parametrize("kind", ["chat", "messages", "responses", "background"])
def test_a_replay_needs_no_provider(
    kind: str, provider: Provider, server: LivesServer, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as http:
            until = tmp_path / "go"
            run = Asking(http, kind, tmp_path.name, control=True, until=str(until), pace=1)
            await run.has(N)
            while "STREAM_END" not in await kinds(http, run):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(provider.kill)
            await asyncio.to_thread(server.start)
            before = len(run.transcript.seen)
            while run.transcript.connections < 2:
                await asyncio.sleep(0.01)
            until.touch()
            # The last question is new: it waits for the provider to be back.
            await asyncio.to_thread(provider.start)
            async with asyncio.timeout(20):
                await run.task
            assert len(run.transcript.seen) == before + 1
            assert run.shown()["text"] == WORDS
            assert requests_of(provider) == {f"{run.tag}/question": 1}

    asyncio.run(main())


async def kinds(http: httpx.AsyncClient, run: Asking) -> list[str]:
    answer = await http.get(f"/_durable/runs/{run.transcript.run_id}/journal")
    return [entry["kind"].upper() for entry in answer.json()["entries"]]
