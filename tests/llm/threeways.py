"""The same code three times: without durability, in a run, and at a replay without a provider."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import anthropic
import openai

from durable_endpoints import durable
from durable_endpoints.llm import durable_client
from tests.engine.worlds import World, world
from tests.support.server import TCPProxy

Case = Callable[["Kit"], Awaitable[Any]]
_GATE: list[asyncio.Event] = []
_CURRENT: list[tuple[Case, Kit]] = []


class Kit:
    """What a case makes its requests with."""

    def __init__(self, url: str, library: ModuleType, *, bare: bool, **options: Any) -> None:
        self.url = url
        self.library = library
        self.bare = bare
        self.options = options
        self.kept: list[Any] = []  # what a case leaves open
        self._open: list[Any] = []

    def client(self, **options: Any) -> Any:
        """An HTTP client, durable or not."""
        if self.bare:
            made = self.library.AsyncClient(follow_redirects=True, **options)
        else:
            made = durable_client(library=self.library, **self.options, **options)
        self._open.append(made)
        return made

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        http = self.client()
        options = {"max_retries": 0, **options}
        return openai.AsyncOpenAI(
            base_url=self.url + "/v1", api_key="sk-secret", http_client=http, **options
        )

    def anthropic(self, **options: Any) -> anthropic.AsyncAnthropic:
        http = self.client()
        options = {"max_retries": 0, **options}
        return anthropic.AsyncAnthropic(
            base_url=self.url, api_key="sk-secret", http_client=http, **options
        )

    async def close(self) -> None:
        for kept in self.kept:
            await kept.close()
        for client in self._open:
            await client.aclose()
        self._open.clear()


@durable
async def play_case() -> Any:
    """Run the case as a run, and stay unfinished until told."""
    case, kit = _CURRENT[0]
    found = await case(kit)
    await _GATE[0].wait()
    return found


async def three_ways(
    case: Case, url: str, library: ModuleType, **options: Any
) -> tuple[Any, Any, Any]:
    """Return what the case finds: bare, live in a run, replayed with the provider unreachable."""
    bare = Kit(url, library, bare=True)
    found = await case(bare)
    await bare.close()
    port = int(url.rpartition(":")[2])
    async with TCPProxy(port) as proxy, world() as one:
        kit = Kit(proxy.url, library, bare=False, llm_hosts=[f"127.0.0.1:{proxy.port}"], **options)
        live = await _live(one, case, kit)
        proxy.refusing = True
        proxy.cut()
        before = proxy.connections
        replayed = await _replayed(one)
        assert proxy.connections == before, "the replay asked the provider"
        await kit.close()
    return found, live, replayed


async def _live(one: World, case: Case, kit: Kit) -> Any:
    seen: list[Any] = []

    async def noted(kit: Kit) -> Any:
        seen.append(await case(kit))
        return seen[-1]

    _CURRENT[:] = [(noted, kit)]
    _GATE[:] = [asyncio.Event()]
    await one.start(play_case)
    async with asyncio.timeout(20):
        while not seen:
            for run in one.engine.runs.values():
                assert run.task is None or not run.task.done(), run.task
            await asyncio.sleep(0.005)
    await one.engine.log.flush()
    return seen[0]


async def _replayed(one: World) -> Any:
    run_id = next(iter(one.engine.runs))
    await one.crash()
    _GATE[0].set()
    await one.boot()
    run = await one.ended(run_id)
    return await run.result()
