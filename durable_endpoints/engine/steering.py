"""What operators and clients do to a run: cancel it, retry it, fork it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import orjson

from durable_endpoints.engine.labels import Labelling, labels_of
from durable_endpoints.engine.pace import TURNS_APART
from durable_endpoints.engine.reader import read_journal, restore
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.errors import Fenced
from durable_endpoints.records import EVENT_KINDS, TERMINAL_KINDS, Kind
from durable_endpoints.standing import failures_of
from durable_endpoints.states import REVIVABLE, TERMINAL

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

# Steps at work when a run is cancelled that its journal names: a few ten kilobytes.
_AT_WORK_MAX: Final = 1000
# How often a handler is looked at before it is cancelled: a few hundred turns of the loop.
_RESTS_MAX: Final = 50
_NOT_SHARED: Final = TERMINAL_KINDS | {Kind.CANCEL}


async def cancel(engine: Engine, run: LiveRun, by: str | None) -> None:
    """Ask a run to stop; returns when that is durable. Its partial output stays.

    A dead run is dropped: what it has done is undone, as with any other.

    Raises: RunDeleted if it went meanwhile; Corrupt.
    """
    while not run.over and run.record.status not in TERMINAL:
        live = engine.runs.get(run.id)
        if live is not None and not live.resting:
            with suppress(Fenced):  # it changes hands
                await _cancel_live(live, by)
                return
        if await _cancel_parked(engine, run, by):
            return
        await asyncio.sleep(0.005)  # it is changing hands
    if run.over:
        await run.durable(run.terminal_seq)


async def _cancel_live(run: LiveRun, by: str | None) -> None:
    await _come_to_rest(run)
    if not (run.caught_up or run.replay or run.over):
        raise Fenced("its journal is being read")
    if run.cancellation.stage == "given up" or run.record.status in REVIVABLE:
        raise Fenced("it is being parked as dead, or was, and somebody takes it up again")
    if not run.cancellation.asked and not run.over:
        # A replay comes to the same calls before it tells the handler.
        run.append(Kind.CANCEL, args=_said_by(by, sorted(run.life.at_work)[:_AT_WORK_MAX]))
        run.cancellation.asked = True
        if run.replay is not None:  # it gets to where it was, so that it can be undone
            run.replay.cancel()
        elif run.cancellation.pending:
            run.cancellation.cut(run)
    await run.durable(run.seq - 1)  # also for who asks a second time


async def _come_to_rest(run: LiveRun) -> None:
    """Wait until the handler has done what follows from the last completion.

    At a replay it is told of its cancellation at such a place. One that never rests is told
    anywhere. A task that has not begun would end without a word.
    """
    for _ in range(_RESTS_MAX):
        seq = run.seq
        for _ in range(TURNS_APART):
            await asyncio.sleep(0)
        ended = run.over or run.fenced is not None
        if (run.seq == seq and run.pace.at_rest) or ended or run.cancellation.asked:
            return


async def _cancel_parked(engine: Engine, run: LiveRun, by: str | None) -> bool:
    claimed = await engine.claim([run.id], dead=True)
    if not claimed:
        if engine.remote is not None and await engine.remote.cancel(run, by):
            return True
        record = await engine.store.get(run.id)
        return record is None or record.status in TERMINAL
    with _held(engine, claimed[0]) as parked:
        diverged = parked.record.status == "diverged"
        entries = await read_journal(engine.store, run.id, last=parked.record.last_seq)
        unwind = any(entry.kind in (Kind.UNDOABLE, Kind.SPAWN) for entry in entries)
        restore(parked, entries)
        if not any(entry.kind == Kind.CANCEL for entry in entries):
            parked.append(Kind.CANCEL, args=_said_by(by))
        parked.cancellation.asked = True
        if unwind and engine.waking.drive is not None and not diverged:
            await _revive(parked)
            engine.waking.drive(parked)
            return True
        parked.waits.close()
        await parked.durable(parked.end(Kind.CANCELLED, "cancelled", None))
    engine.forget(parked)
    return True


@contextmanager
def _held(engine: Engine, run: LiveRun) -> Iterator[LiveRun]:
    """Let go of a run if something goes wrong before it is driven on, or ended."""
    try:
        yield run
    except BaseException:
        engine.forget(run)
        raise


def _said_by(by: str | None, at_work: Sequence[str] = ()) -> bytes:
    fields: dict[str, object] = {} if by is None else {"by": by}
    if at_work:
        fields["at"] = at_work  # calls that a replay must have come to by then
    return orjson.dumps(fields) if fields else b""


async def retry(engine: Engine, run: LiveRun, by: str | None) -> bool:
    """Have a dead or diverged run go on; returns when that is durable. False for others.

    The failure that it died of is void; what is recorded besides stays.

    Raises: Overloaded while another run of its concurrency key is at work; RunDeleted if it went
    meanwhile; Corrupt.
    """
    record = await engine.store.get(run.id)
    if record is None or record.status not in REVIVABLE:
        return False
    await engine.conflicts.check_free(record)
    while run.id in engine.runs:  # noqa: ASYNC110 - who drove it is just letting go
        await asyncio.sleep(0.001)
    claimed = await engine.claim([run.id], dead=True)
    if not claimed:
        return False
    with _held(engine, claimed[0]) as parked:
        entries = await read_journal(engine.store, run.id, last=parked.record.last_seq)
        restore(parked, entries)
        keys = failures_of(entries)
        parked.append(Kind.RETRY, b"", orjson.dumps(keys), args=_said_by(by))
        await _revive(parked)
    if engine.waking.drive is not None:
        engine.waking.drive(parked)
    else:
        engine.forget(parked)
    return True


async def _revive(run: LiveRun) -> None:
    """Have a parked run go on as of what was appended; returns when that is durable.

    Raises: Fenced if another node was faster, with this run or with another one of its key.
    """
    run.revive()
    await run.durable(run.seq - 1)


async def fork(
    engine: Engine, run: LiveRun, before_seq: int, *,
    payload: bytes | None = None, results: Mapping[str, bytes] | None = None,
    by: str | None = None,
) -> LiveRun:  # fmt: skip
    """Begin a run that shares another's journal up to entry `before_seq`; returns when durable.

    `payload` replaces its input; `results`, by the calls' keys, what steps returned, as JSON.

    Raises: ValueError if the journal has no such entry; RunDeleted, Corrupt, Overloaded.
    """
    record = await engine.store.get(run.id) or run.record
    entries = await read_journal(engine.store, run.id, last=record.last_seq)
    if not 0 < before_seq <= len(entries):
        raise ValueError(f"from_step={before_seq}: the run has entries 0 to {len(entries) - 1}")
    shared = {entry.key for entry in entries[:before_seq] if entry.kind == Kind.STEP}
    if unknown := set(results or ()) - shared:
        raise ValueError(f"results: no step before entry {before_seq} has the key {min(unknown)!r}")
    started = entries[0]
    meta = {**orjson.loads(started.args), "deadline": None, "fork": [run.id, before_seq]}
    meta.pop("by", None)
    if by is not None:
        meta["by"] = by
    forked = engine.begin(
        record.name, version=record.version, principal=record.principal,
        args=orjson.dumps(meta), payload=started.payload if payload is None else payload,
    )  # fmt: skip
    with _held(engine, forked):
        forked.rewind_aware = bool(meta.get("rewinds"))
        forked.life.labelling = Labelling(labels_of(entries[:before_seq]))
        forked.life.labelling.changed = True
        for entry in entries[1:before_seq]:
            if entry.kind in _NOT_SHARED:
                continue
            data = (results or {}).get(entry.key, entry.payload)
            if entry.kind in EVENT_KINDS:
                forked.append_event(entry.kind, entry.payload, entry.key.encode())
            else:
                data = data if entry.kind == Kind.STEP else entry.payload
                forked.append(
                    entry.kind, entry.key.encode(), data, entry.check, entry.took_us, entry.args
                )
        forked.caught_up = False
        await forked.durable(forked.seq - 1)
    if engine.waking.drive is not None:
        engine.waking.drive(forked)
    return forked
