"""Replay of a stored journal against today's code, without a server, effects or live steps.

replayed = await replay(app, entries)
assert replayed.ok, replayed.difference
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette._utils import get_route_path

from durable_endpoints.asgi.middleware import DurableMiddleware
from durable_endpoints.asgi.replayed import ReplayedExchange
from durable_endpoints.asgi.request import KIND, rebuild
from durable_endpoints.engine import functions
from durable_endpoints.engine.endpoints import ENDPOINTS, EndpointSpec
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.reader import restore
from durable_endpoints.errors import DurableError
from durable_endpoints.frames import pack, pack_entry
from durable_endpoints.ids import new_run_id
from durable_endpoints.records import EVENT_KINDS, TERMINAL_KINDS, Entry, Frame, Kind, RunRecord
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.testing.exported import Exported, imported
from durable_endpoints.testing.lifespan import lifespan
from durable_endpoints.testing.offline import OfflineJournal, OfflineRun, offline, quiet

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PATIENCE_S: Final = 5.0
_ENDS: Final = TERMINAL_KINDS | {Kind.GAVE_UP}


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a replay.

    `ok`: today's code does what is recorded. `difference`: what it does instead. `beyond`: where
    it wanted to go on behind the last entry; for a run that was unfinished that is as it should
    be. `replayed`: the calls that returned what is recorded, in order; `recorded`: how many
    there are. `other_version`: the run belongs to another version of the endpoint and was not
    replayed.
    """

    ok: bool
    difference: str | None = None
    beyond: str | None = None
    replayed: tuple[str, ...] = ()
    recorded: int = 0
    other_version: bool = False


class NotReplayable(DurableError):
    """There is nothing that the journal could be replayed with; the message says what to do."""


async def replay(
    app: Any, entries: Iterable[Entry | Exported], *, run_id: str | None = None,
    version: str | None = None, principal: str | None = None,
    lifespan: bool = True, patience: float = PATIENCE_S,
) -> Replayed:  # fmt: skip
    """Replay one journal. See `Replayer` for several.

    `app` is the ASGI app with its DurableMiddleware, or a `@durable` function (or several) for
    runs that `Engine.start` began. `entries` is a journal, as `Run.journal` returns it or as
    `durable export` wrote it. `run_id`, `version` and `principal` are the run's, if known: the
    id seeds its `random()`, and a run of another version is not replayed. `lifespan`: whether the
    app is started up before. `patience`: after how many seconds without any progress the replay
    is over.

    Raises: NotReplayable, ValueError if the entries are no journal.
    """
    async with Replayer(app, lifespan=lifespan, patience=patience).started() as replayer:
        return await replayer.replay(entries, run_id=run_id, version=version, principal=principal)


class Replayer:
    """Replays journals against one app. Its start-up code runs once, recorded steps never."""

    def __init__(self, app: Any, *, lifespan: bool = True, patience: float = PATIENCE_S) -> None:
        some = app if isinstance(app, Sequence) else [app]
        self._functions = [each for each in some if hasattr(each, "durable_endpoint")]
        self._middleware = None if self._functions else middleware_of(app)
        self._app = app
        self._lifespan = lifespan
        self._patience_s = patience
        self._state: dict[str, Any] = {}

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Replayer]:
        """Start the app up, and shut it down behind."""
        if self._middleware is None or not self._lifespan:
            yield self
            return
        async with lifespan(self._middleware.app, self._app) as state:
            self._state = state
            yield self

    async def replay(
        self, entries: Iterable[Entry | Exported], *, run_id: str | None = None,
        version: str | None = None, principal: str | None = None,
    ) -> Replayed:  # fmt: skip
        """Replay one journal. See `replay`."""
        whole = imported(entries)
        end = whole[-1] if whole[-1].kind in _ENDS else None
        kept = whole[: len(whole) - 1] if end is not None else whole
        failures: list[str] = []
        engine = Engine(MemoryStore(), on_failure=failures.append)
        offline(engine)
        await engine.open()
        try:
            at_ms = kept[0].at_ms
            record = RunRecord(
                run_id or new_run_id(at_ms), "replay", "running", at_ms, at_ms,
                version=version or "", principal=principal,
            )  # fmt: skip
            run = await _copied(engine, kept, record)
            journal = OfflineJournal(kept)
            other = await self._drive(engine, run, kept[0], journal, checked=version is not None)
        finally:
            await engine.close()
        if failures:
            raise AssertionError(failures)
        return _judged(run, journal, end, other_version=other)

    async def _drive(
        self, engine: Engine, run: OfflineRun, started: Entry, journal: OfflineJournal,
        *, checked: bool,
    ) -> bool:  # fmt: skip
        """Let the handler run; True if the run is another version's."""
        meta = orjson.loads(started.args)
        if meta["kind"] == KIND:
            exchange = self._exchange(run, started, journal, meta)
            exchange.checked = checked
            assert self._middleware is not None
            pattern = None
            if meta["pattern"]:
                pattern = self._middleware.host.pattern_of(get_route_path(exchange.scope))
            run.task = engine.spawn(exchange.handle(self._middleware.app, pattern))
            await quiet(run.task, run, self._patience_s)
            return exchange.other
        with self._known_as(meta["function"]) as spec:
            if checked and spec.version != run.record.version:
                return True
            run.record.version = spec.version
            recovered = engine.spawn(functions.recover(engine, run, started, journal))
            await quiet(recovered, run, self._patience_s)
        return False

    def _exchange(
        self, run: OfflineRun, started: Entry, journal: OfflineJournal, meta: dict[str, Any]
    ) -> _Exchange:
        if self._middleware is None:
            raise NotReplayable("the run answered a request: give its app, not a function")
        options = self._middleware.host.options
        hook = options.restore_headers
        extra = hook(run.record.principal, meta) if hook is not None else ()
        scope = rebuild(meta, {"app": self._app, "state": self._state}, extra)
        return _Exchange(run, journal, scope, started.payload)

    @contextmanager
    def _known_as(self, name: str) -> Iterator[EndpointSpec]:
        """Have the function found by the name that the journal holds."""
        before = ENDPOINTS.get(name)
        found = [f for f in self._functions if f.durable_endpoint.name == name] or self._functions
        if len(found) == 1:
            ENDPOINTS[name] = (found[0].durable_endpoint, found[0])
        if name not in ENDPOINTS:
            raise NotReplayable(f"the run is a call of {name}, which no imported module defines")
        try:
            yield ENDPOINTS[name][0]
        finally:
            if before is None:
                del ENDPOINTS[name]
            else:
                ENDPOINTS[name] = before


class _Exchange(ReplayedExchange):
    """A recovered request that only replays."""

    checked = True
    other = False

    def __init__(self, run: OfflineRun, journal: OfflineJournal, scope: Any, body: bytes) -> None:
        super().__init__(run, journal, scope, body, lambda: False, _has_its_turn)
        self.run = run
        self.scope = scope

    async def promote(self, spec: EndpointSpec, *, concurrency_key: str | None = None) -> None:
        """See `ReplayedExchange.promote`."""
        if not self.checked:
            self.run.record.version = spec.version
        self.other = spec.version != self.run.record.version
        await super().promote(spec, concurrency_key=concurrency_key)


async def _has_its_turn(run: Any) -> None:
    """Let a run begin that waited for others of its concurrency key: the wait is recorded."""
    for call in run.replay.journal.calls.values() if run.replay is not None else ():
        if call.ident.startswith("turn/"):
            call.claimed = True
            for delivery in call.deliveries:
                run.replay.take(delivery)


async def _copied(engine: Engine, entries: list[Entry], record: RunRecord) -> OfflineRun:
    """Put a copy of a journal into the engine's store, and return its run."""
    at_ms, store = entries[0].at_ms, engine.store
    events = sum(entry.kind in EVENT_KINDS for entry in entries)
    parts = [
        pack_entry(e.kind, e.key.encode(), e.check, e.at_ms, e.took_us, e.args, e.payload)
        for e in entries
    ]
    await store.append(
        [
            Frame(record.run_id, 1, 0, len(entries), 0, events, 0, pack(parts), at_ms, "running",
                  record)
        ]
    )  # fmt: skip
    (claimed,) = await store.claim([record.run_id], at_ms)
    run = OfflineRun(engine.log, claimed, opening=False)
    run.take_over(claimed)
    restore(run, entries)
    run.waits.restore(entries)
    run.rewind_aware = bool(orjson.loads(entries[0].args).get("rewinds"))
    engine.runs[run.id] = run
    return run


def _judged(
    run: OfflineRun, journal: OfflineJournal, end: Entry | None, *, other_version: bool
) -> Replayed:
    done = sorted(
        (delivery.index, call.name)
        for call in journal.calls.values()
        for delivery in call.deliveries
        if delivery.done
    )
    names = tuple(name for _, name in done)
    recorded = sum(len(call.deliveries) for call in journal.calls.values())
    difference, beyond = run.difference, run.beyond
    if difference is None and beyond is not None and end is not None:
        difference = f"the run had ended here, the code {beyond}"
    if difference is None and end is not None and beyond is None:
        difference = _compared(end, run.ending)
    if difference is None and beyond is None and end is None and run.ending is not None:
        beyond = f"came to its end: {run.ending[0].name.lower()}"
    if difference is None and beyond is None and run.ending is None:
        difference = f"the handler ended without an end of its run: {run.fenced or run.error}"
    if other_version:
        difference = difference or "the run belongs to another version"
    return Replayed(difference is None, difference, beyond, names, recorded, other_version)


def _compared(end: Entry, now: tuple[Kind, bytes] | None) -> str | None:
    if now is None:
        return f"the run ended as {end.kind.name.lower()}, the code comes to no end"
    kind, payload = now
    if _named(kind, payload)[1] != _named(end.kind, end.payload)[1]:
        return (
            f"the run ended as {_named(end.kind, end.payload)[0]}, with today's code as "
            f"{_named(kind, payload)[0]}"
        )
    if kind == Kind.COMPLETED and payload != end.payload:
        return f"the run returned {end.payload[:200]!r}, the code now returns {payload[:200]!r}"
    return None


def _named(kind: Kind, payload: bytes) -> tuple[str, str]:
    """Return an end in words, and what of it has to be the same: not an error's message."""
    name = kind.name.lower()
    fields = orjson.loads(payload) if kind == Kind.FAILED and payload else {}
    if "type" not in fields:
        return name, name
    error = fields["type"].rpartition(":")[2]
    return f"{name} ({error}: {fields.get('message', '')})", f"{name} {error}"


def middleware_of(app: Any) -> DurableMiddleware:
    """Return the DurableMiddleware of an app, below its wrappers or in an app that it mounts.

    Raises: NotReplayable if there is none.
    """
    todo, seen = [app], set()
    while todo:
        part = todo.pop()
        if isinstance(part, DurableMiddleware):
            return part
        if id(part) in seen:
            continue
        seen.add(id(part))
        build: Callable[[], ASGIApp] | None = getattr(part, "build_middleware_stack", None)
        if build is not None:
            if part.middleware_stack is None:
                part.middleware_stack = build()
            todo.append(part.middleware_stack)
        inner = getattr(part, "app", None)
        if callable(inner):
            todo.append(inner)
        todo += getattr(part, "routes", ())
    raise NotReplayable(f"no DurableMiddleware is found in {app!r}: name the app that has it")
