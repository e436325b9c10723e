"""Requests that are led to a run by their keys, whatever has become of that run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from durable_endpoints import DurableMiddleware, durable, wait_for_signal
from durable_endpoints.engine.engine import Engine
from durable_endpoints.records import Frame, RunRecord
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.protocol import Query
from tests.surface.wire import is_problem

KEY = {"idempotency-key": "k"}
ASYNC = {"prefer": "respond-async"}
PATIENCE_S = 10


class Watched(MemoryStore):
    """Something may happen right behind the look at who has a key; writes may stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[str], Awaitable[None]] | None = None  # once
        self.writes, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        """See `Store.append`."""
        self.writes.set()
        await self.go.wait()
        return await super().append(batch)

    async def find(self, principal: str | None, name: str, key: str) -> RunRecord | None:
        """See `Store.find`."""
        found = await super().find(principal, name, key)
        await self._found([found] if found is not None else [])
        return found

    async def list(self, query: Query) -> list[RunRecord]:
        """See `Store.list`."""
        found = await super().list(query)
        await self._found(found if query.concurrency_key is not None else [])
        return found

    async def _found(self, rows: Sequence[RunRecord]) -> None:
        if rows and self.then is not None:
            then, self.then = self.then, None
            await then(rows[0].run_id)


class House:
    """An app, and a client of it."""

    def __init__(self) -> None:
        self.store = Watched()
        self.engine = Engine(self.store, suspend_grace_s=0)
        self.begun: list[str] = []
        self.gate = asyncio.Event()
        app = FastAPI()
        app.post("/plain")(durable(self._asks))
        app.post("/done")(durable(self._ends))
        for policy in ("attach", "reject", "replace"):
            alone = durable(concurrency_key="one", on_conflict=policy)
            app.post(f"/{policy}")(alone(self._passes))
        app.post("/waits")(durable(concurrency_key="one", on_conflict="attach")(self._asks))
        app.add_middleware(DurableMiddleware, engine=self.engine)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def _asks(self) -> str:
        self.begun.append("")
        return str(await wait_for_signal("go"))

    async def _ends(self) -> str:
        self.begun.append("")
        return ""

    async def _passes(self, text: str) -> str:
        self.begun.append(text)
        await self.gate.wait()
        return text

    async def resting(self, path: str) -> str:
        """Return a run that is suspended, or at its end, and no longer in memory."""
        answer = await self.http.post(path, headers=KEY | ASYNC)
        run_id = answer.headers["durable-run-id"]
        while run_id in self.engine.runs:
            await asyncio.sleep(0.001)
        self.engine.idle.pop(run_id, None)
        return str(run_id)

    async def drop(self, run_id: str) -> None:
        await self.engine.cancel(await self.engine.observe(run_id))
        assert await self.engine.delete(await self.engine.observe(run_id))


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    async with asyncio.timeout(PATIENCE_S):
        one = House()
        async with one.http:
            yield one
        await one.engine.close()


@pytest.mark.parametrize(("path", "key"), [("/plain", KEY), ("/waits", {})])
def test_a_run_that_is_deleted_meanwhile_makes_place(path: str, key: dict[str, str]) -> None:
    async def main() -> None:
        async with house() as one:
            gone = await one.resting(path)
            one.store.then = one.drop
            answer = await one.http.post(path, headers=key | ASYNC)
            assert answer.status_code == 202, answer.text
            assert answer.headers["durable-run-id"] != gone
            assert await one.store.get(gone) is None
            assert len(one.begun) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "key"), [("/plain", KEY), ("/waits", {}), ("/done", KEY)]
)  # fmt: skip
def test_i20_who_is_led_to_a_damaged_run_is_told_so(path: str, key: dict[str, str]) -> None:
    async def main() -> None:
        async with house() as one:
            run_id = await one.resting(path)
            del one.store._frames[run_id][0]
            for headers in (key, key | ASYNC):
                is_problem(await one.http.post(path, headers=headers), 500, "run-damaged")
            assert len(one.begun) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("policy", "text"), [("attach", '"a"'), ("reject", "run-conflict"), ("replace", '"b"')]
)  # fmt: skip
def test_i7_nobody_is_told_of_a_run_before_it_is_durable(policy: str, text: str) -> None:
    async def main() -> None:
        async with house() as one:
            one.store.go.clear()
            first = asyncio.create_task(one.http.post(f"/{policy}?text=a"))
            await one.store.writes.wait()
            second = asyncio.create_task(one.http.post(f"/{policy}?text=b"))
            places = one.engine.conflicts._locks
            while not (second.done() or len(one.begun) > 1):
                if any(place.locked() for place in places.values()):
                    break  # it waits there
                await asyncio.sleep(0)
            assert not second.done()
            assert one.begun == ["a"]
            one.store.go.set()
            if policy == "reject":
                is_problem(await second, 409, "run-conflict")
            elif policy == "replace":
                is_problem(await first, 409, "run-cancelled")
            one.gate.set()
            assert text in (await second).text
            await first

    asyncio.run(main())
