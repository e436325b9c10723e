"""Runs without a request: `Engine.start` calls a `@durable` function as a run of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import orjson

from durable_endpoints.codec import Codec, codec_of, dumps
from durable_endpoints.engine.context import emit
from durable_endpoints.engine.endings import conclude
from durable_endpoints.engine.endpoints import ADMISSION, ENDPOINTS, EndpointSpec
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.outcomes import is_cancellation
from durable_endpoints.engine.reader import Reader, read_journal
from durable_endpoints.engine.recent import Event
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.scope import SCOPE, Scope
from durable_endpoints.errors import Fenced, NotDurable, RunCancelled, RunFailed
from durable_endpoints.journal import Journal
from durable_endpoints.records import Entry, Status
from durable_endpoints.stores.protocol import PATIENCE_S

logger = logging.getLogger("durable_endpoints")
KIND = "call"
# Reading a function's annotations, or building what checks them, takes longer than many a run.
_CODECS: Final[WeakKeyDictionary[Callable[..., Any], Codec]] = WeakKeyDictionary()


class Run:
    """A handle on one run."""

    def __init__(self, engine: Engine, run: LiveRun) -> None:
        self._engine = engine
        self._run = run

    @property
    def id(self) -> str:
        """The run id."""
        return self._run.id

    @property
    def status(self) -> Status:
        """The durable status."""
        return self._run.record.status

    async def events(self, after: int = -1) -> AsyncIterator[Event]:
        """Yield the run's durable events behind offset `after`, until its end."""
        reader = Reader(self._engine.store, self._run, after + 1)
        while events := await reader.read():
            for event in events:
                yield event

    async def result(self) -> Any:
        """Wait for the end and return what the function returned, as JSON brings it back.

        Raises: RunFailed, RunCancelled, RunDeleted; Fenced if the run goes on in another process.
        """
        run = self._run
        while not run.ended:
            if run.gone is not None:
                raise Fenced(run.gone)
            await run.progress()
        if run.record.status == "cancelled":
            raise RunCancelled(run.id)
        if run.record.status != "completed":
            raise RunFailed(f"run {run.id} {run.record.status}: {run.record.error}")
        end = run.durable_seq
        last = (await read_journal(self._engine.store, run.id, seq=end, last=end))[-1]
        return orjson.loads(last.payload) if last.payload else None

    async def journal(self) -> list[Entry]:
        """Return the run's journal, as far as it is durable.

        Raises: RunDeleted.
        """
        run = self._run
        return await read_journal(self._engine.store, run.id, last=run.durable_seq)

    async def signal(self, name: str, data: Any = None, *, signal_id: str | None = None) -> None:
        """Give the run a signal; returns when that is durable. See `Engine.signal`."""
        await self._engine.signal(self._run, name, data, signal_id=signal_id)

    async def retry(self) -> bool:
        """Have a dead or diverged run go on. See `Engine.retry`."""
        return await self._engine.retry(self._run)

    async def fork(
        self,
        from_step: int,
        *,
        input: Any = None,  # noqa: A002 - what a caller would look for
        results: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run that shares this one's journal up to entry `from_step` (its seq).

        `input` replaces the arguments, as `{"args": […], "kwargs": {…}}`; `results`, by the
        calls' keys in the journal, what steps returned.

        Raises: ValueError if there is no such entry; NotSerializable; Overloaded.
        """
        payload = None if input is None else dumps(input, "input of a fork")
        changed = {key: dumps(value, f"result of {key}") for key, value in (results or {}).items()}
        forked = await self._engine.fork(self._run, from_step, payload=payload, results=changed)
        return Run(self._engine, forked)

    async def cancel(self) -> None:
        """Ask the run to stop; returns when that is durable."""
        await self._engine.cancel(self._run)


async def start(engine: Engine, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Run:
    """Call a `@durable` function as a run; returns once that is durable.

    Arguments are JSON values.

    Raises: NotDurable, NotSerializable, Overloaded.
    """
    run = begin_call(engine, function, args, kwargs)
    await run.durable(0)
    return Run(engine, run)


def begin_call(
    engine: Engine, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
    *, run_id: str | None = None, parent: str | None = None, principal: str | None = None,
    name: str | None = None, key: str | None = None, fingerprint: str | None = None,
) -> LiveRun:  # fmt: skip
    """Begin a call as a run; it is durable with the log's next commit. See `start`.

    `name` is the run's, if not the function's; for the rest see `Engine.begin`.
    """
    spec: EndpointSpec | None = getattr(function, "durable_endpoint", None)
    if spec is None:
        raise NotDurable(f"{function!r} is not @durable: decorate it first")
    payload = dumps({"args": args, "kwargs": kwargs}, f"arguments of {spec.name}")
    deadline_ms = None
    if spec.timeout_s is not None:
        deadline_ms = engine.clock.due_ms() + int(spec.timeout_s * 1000)
    meta = orjson.dumps({"kind": KIND, "function": spec.name, "deadline": deadline_ms})
    run = engine.begin(
        name or spec.name, version=spec.version, args=meta, payload=payload, principal=principal,
        run_id=run_id, parent=parent, key=key, fingerprint=fingerprint,
    )  # fmt: skip
    run.task = engine.spawn(_drive(engine, run, spec, function, payload))
    if deadline_ms is not None:
        run.waits.limit(deadline_ms)
    return run


async def recover(engine: Engine, run: LiveRun, started: Entry, journal: Journal) -> None:
    """Drive a recovered call on."""
    name = orjson.loads(started.args)["function"]
    spec, function = ENDPOINTS.get(name, (None, None))
    if spec is None or function is None:
        run.park("diverged", f"the function {name} is gone; bring it back, or cancel the run")
        return
    if spec.version != run.record.version:
        run.park("diverged", f"began with version {run.record.version}, the code is {spec.version}")
        return
    run.task = engine.spawn(_drive(engine, run, spec, function, started.payload))
    task = run.task
    run.begin_replay(journal)
    await asyncio.wait([task])


def _codec_of(spec: EndpointSpec, function: Callable[..., Any]) -> Codec:
    """Return the codec of a function's result, made at its first use: names may come late."""
    codec = _CODECS.get(function)
    if codec is None:
        codec = _CODECS[function] = codec_of(f"result of {spec.name}", function)
    return codec


async def _drive(
    engine: Engine, run: LiveRun, spec: EndpointSpec, function: Callable[..., Any], payload: bytes
) -> None:
    call = orjson.loads(payload)
    life = run.life
    SCOPE.set(Scope(run))
    PATIENCE_S.set(None)
    ADMISSION.set(None)
    error: BaseException | None = None
    data = b""
    try:
        if inspect.isasyncgenfunction(function):
            async for item in function(*call["args"], **call["kwargs"]):
                emit(item)
        else:
            value = await function(*call["args"], **call["kwargs"])
            data = _codec_of(spec, function).encode(value)
    except BaseException as raised:  # noqa: BLE001 - its fate is the run's
        error = raised
    SCOPE.set(None)
    if run.life is not life or run.resting:
        return
    try:
        await conclude(run, error, complete=error is None, leaving=engine.leaving, result=data)
    except BaseException as raised:  # noqa: BLE001 - a compensation that waits: suspended
        if run.life is life and not run.resting:
            run.fence(f"its end was cut short: {raised!r}", keep=True)
    if run.life is life and not run.resting:
        run.task = None  # nobody cancels this task for the run now: it has to leave memory
    if error is not None and not is_cancellation(error):
        logger.error("run %s failed", run.id, exc_info=error)
    try:
        await engine.log.flush()
    finally:
        if run.life is life and not run.resting:
            engine.forget(run)
