"""Spans by the real OpenTelemetry SDK: of what, whose children, and what is never told twice."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable_endpoints import (
    DurableMiddleware,
    Engine,
    Retry,
    durable,
    effect,
    step,
    wait_for_signal,
)
from durable_endpoints.engine import functions
from durable_endpoints.engine.recovery import Recovery
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.telemetry import RunFilter, observer
from durable_endpoints.testing import replay
from durable_endpoints.testing.replaying import middleware_of
from tests.engine.worlds import PATIENCE_S, World

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
LOG = logging.getLogger("tests.travel")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def one(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = named(exporter, name)
    return span


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else trace.format_span_id(span.parent.span_id)


def own(span: ReadableSpan) -> str:
    return trace.format_span_id(span.context.span_id)


tries = 0


@step
async def think(n: int) -> int:
    with trace.get_tracer("inner", tracer_provider=PROVIDERS[-1]).start_as_current_span("inner"):
        return n + 1


PROVIDERS: list[TracerProvider] = []


@step(retry=Retry(attempts=3, initial=0.001))
async def shaky() -> str:
    global tries
    tries += 1
    if tries == 1:
        raise ConnectionError("not now")
    return "done"


@effect
async def pay(amount: int) -> str:
    LOG.info("paying")
    return f"paid {amount}"


@step
async def words() -> AsyncIterator[str]:
    yield "a"
    yield "b"


@step
def plain() -> int:
    return 1


def make_app(provider: TracerProvider) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DurableMiddleware, store="memory:", telemetry=provider)

    @app.post("/work")
    @durable
    async def work() -> dict[str, object]:
        n = await think(1)
        text = "".join([w async for w in words()])
        return {"n": n, "s": await shaky(), "p": await pay(3), "t": text, "i": plain()}

    @app.post("/fail")
    @durable
    async def fail() -> None:
        raise ValueError("secret detail")

    return app


async def post(app: FastAPI, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        answer = await client.post(path, headers=headers)
    await middleware_of(app).engine.close()
    return answer


def test_a_request_is_a_run_with_its_steps(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    global tries
    tries = 0
    PROVIDERS.append(provider)
    answer = asyncio.run(post(make_app(provider), "/work", HEADERS))
    assert answer.json() == {"n": 2, "s": "done", "p": "paid 3", "t": "ab", "i": 1}
    run = one(exporter, "run POST /work")
    assert trace.format_trace_id(run.context.trace_id) == TRACE
    assert parent(run) == CALLER
    assert run.attributes is not None
    assert run.attributes["durable.run.status"] == "completed"
    assert run.attributes["durable.run.id"] == answer.headers["durable-run-id"]
    for name in ("step think", "step words", "effect pay", "step plain"):
        assert parent(one(exporter, name)) == own(run), name
    first, second = named(exporter, "step shaky")
    assert not first.status.is_ok
    assert second.status.is_unset
    assert parent(one(exporter, "inner")) == own(one(exporter, "step think"))
    kinds = {span.kind for span in exporter.get_finished_spans()}
    assert kinds == {trace.SpanKind.INTERNAL}  # a server span is the framework's


def test_the_span_around_the_request_is_the_parent(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    PROVIDERS.append(provider)
    tracer = trace.get_tracer("server", tracer_provider=provider)

    async def main() -> None:
        with tracer.start_as_current_span("server"):
            await post(make_app(provider), "/work", HEADERS)

    asyncio.run(main())
    assert parent(one(exporter, "run POST /work")) == own(one(exporter, "server"))


def test_a_failure_is_an_error_without_its_text(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    asyncio.run(post(make_app(provider), "/fail"))
    run = one(exporter, "run POST /fail")
    assert run.status.description == "ValueError"
    assert "secret" not in run.to_json()


@durable
async def waiting(n: int) -> int:
    m = await think(n)
    answer = await wait_for_signal("go")
    return int(await think(m + answer))


class Watched(World):
    """A world whose engines make spans."""

    def __init__(self, provider: TracerProvider) -> None:
        super().__init__(MemoryStore())
        self._spans = observer(provider)

    async def boot(self) -> None:
        """See `World.boot`."""
        self.engine = Engine(self.store, on_failure=self.failures_append)
        self.engine.observer = self._spans
        self.engine.drivers[functions.KIND] = lambda run, started, journal: functions.recover(
            self.engine, run, started, journal
        )
        await self.engine.open()
        await Recovery(self.engine).sweep()
        self.engine.spawn(self.engine.waking.watch())


def test_later_lives_are_linked_and_tell_nothing_twice(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    PROVIDERS.append(provider)

    async def main() -> None:
        one_world = Watched(provider)
        await one_world.boot()
        one_world.engine.waking.suspend_grace_s = 0
        run = await one_world.start(waiting, 1)
        async with asyncio.timeout(PATIENCE_S):
            while (await one_world.store.get(run.id)).status != "suspended":  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
        again = await one_world.run_of(run.id)
        await again.signal("go", 10)
        ended = await one_world.ended_for_good(run.id)
        assert await ended.result() == 13
        await one_world.engine.close()

    asyncio.run(main())
    first, second = named(exporter, f"run {waiting.durable_endpoint.name}")  # type: ignore[attr-defined]
    assert first.attributes is not None
    assert first.attributes["durable.run.status"] == "suspended"
    assert second.context.trace_id == first.context.trace_id
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    thinking = named(exporter, "step think")
    assert [parent(span) for span in thinking] == [own(first), own(second)]
    wait = one(exporter, "wait signal:go")
    assert parent(wait) == own(second)
    assert wait.start_time is not None
    assert first.end_time is not None
    assert wait.start_time < first.end_time  # it began in the first life


def test_a_crash_leaves_a_link(exporter: InMemorySpanExporter, provider: TracerProvider) -> None:
    PROVIDERS.append(provider)

    async def main() -> None:
        gate = asyncio.Event()

        @durable
        async def crashing() -> int:
            first = await think(1)
            await gate.wait()
            return int(await think(first))

        before = Watched(provider)
        await before.boot()
        run = await before.start(crashing)
        async with asyncio.timeout(PATIENCE_S):
            while (await before.store.get(run.id)).last_seq < 1:  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
        await before.crash()
        gate.set()
        after = Watched(provider)
        after.store = before.store
        await after.boot()
        await after.ended(run.id)
        await after.engine.close()

    asyncio.run(main())
    (again,) = [s for s in exporter.get_finished_spans() if s.name.startswith("run ")]
    assert again.attributes is not None
    assert again.attributes["durable.run.resumed"] is True
    assert len(again.links) == 1  # to the life that the crash ended, which told of itself no more
    first, second = named(exporter, "step think")
    assert first.parent is not None
    assert first.parent.span_id == again.links[0].context.span_id
    assert parent(second) == own(again)


def test_log_records_name_run_and_step(
    provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    PROVIDERS.append(provider)
    caplog.handler.addFilter(RunFilter())
    try:
        with caplog.at_level(logging.INFO, LOG.name):
            LOG.info("outside")
            answer = asyncio.run(post(make_app(provider), "/work"))
    finally:
        caplog.handler.filters.clear()
    records = [r for r in caplog.records if r.name == LOG.name]
    found = [(r.message, r.run_id, r.step) for r in records]  # type: ignore[attr-defined]
    assert found == [("outside", "", ""), ("paying", answer.headers["durable-run-id"], "pay")]


@durable
async def talks() -> int:
    LOG.info("before")
    n = await think(1)
    LOG.info("after")
    return int(n)


def test_a_replay_says_nothing_again(
    provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    PROVIDERS.append(provider)

    async def main() -> list[str]:
        watched = Watched(provider)
        await watched.boot()
        run = await watched.start(talks)
        await run.result()
        entries = await run.journal()
        await watched.engine.close()
        assert (await replay(talks, entries)).ok
        return [record.message for record in caplog.records if record.name == LOG.name]

    silent = RunFilter()
    caplog.handler.addFilter(silent)
    with caplog.at_level(logging.INFO, LOG.name):
        assert asyncio.run(main()) == ["before", "after"]
        caplog.handler.removeFilter(silent)
        caplog.clear()
        assert asyncio.run(main()) == ["before", "after", "before", "after"]


def test_a_run_that_is_left_to_the_next_process_is_told(
    exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    PROVIDERS.append(provider)

    @durable
    async def endless() -> None:
        await think(1)
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        watched = Watched(provider)
        await watched.boot()
        await watched.start(endless)
        await watched.engine.close()

    asyncio.run(main())
    (run,) = [span for span in exporter.get_finished_spans() if span.name.startswith("run ")]
    assert run.attributes is not None
    assert run.attributes["durable.run.status"] == "left"


def test_without_the_library_nothing_is_observed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "durable_endpoints.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert observer() is None
    assert 'pip install "durable-endpoints[otel]"' in caplog.text
