"""Runs that other nodes drive: followed for their readers here, and asked for signals and cancels.

What another node has committed is read from the store: told by news, and looked for besides. What
is asked of the node that drives a run goes through messages, which that node takes into the
journal before it answers; whoever asks again asks the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary
from zlib import crc32

import orjson

from durable_endpoints.engine.recent import Event
from durable_endpoints.engine.run import LiveRun
from durable_endpoints.engine.wait import Receipt, Signal
from durable_endpoints.errors import (
    AlreadyAnswered,
    Fenced,
    Overloaded,
    RunEnded,
    SignalRefused,
    StoreError,
)
from durable_endpoints.frames import unpack
from durable_endpoints.lent import Lender
from durable_endpoints.limits import READ_BYTES_MAX, WAKE_S
from durable_endpoints.records import EVENT_KINDS, Kind, RunRecord
from durable_endpoints.stores.nodes import Edge, Message, Nodes
from durable_endpoints.stores.protocol import StoredFrame

if TYPE_CHECKING:
    from durable_endpoints.engine.engine import Engine

logger = logging.getLogger("durable_endpoints")

# How often who waits for an answer looks for it, should nobody tell.
_ANSWER_POLL_S: Final = 0.2
_REFUSALS: Final = {
    kind.__name__: kind for kind in (AlreadyAnswered, Overloaded, RunEnded, SignalRefused)
}


class Remote:
    """The engine's side of `Nodes`, and its `Listener`."""

    def __init__(self, engine: Engine, nodes: Nodes) -> None:
        self.nodes = nodes
        self.edge = nodes if isinstance(nodes, Edge) else None
        self._engine = engine
        self._followed: WeakValueDictionary[str, LiveRun] = WeakValueDictionary()
        self._reading: dict[str, bool] = {}  # runs being read -> whether they moved meanwhile
        self._locks: WeakKeyDictionary[LiveRun, asyncio.Lock] = WeakKeyDictionary()
        self._serving: set[tuple[str, str]] = set()
        self._look = asyncio.Event()  # at what is followed
        self._mail = asyncio.Event()
        self._answers: list[asyncio.Future[None]] = []

    def start(self) -> None:
        """Begin to look, and to serve messages."""
        self.nodes.listener = self
        if isinstance(self.nodes, Lender):
            self._engine.waking.quotas.share(self.nodes, self._engine.spawn)
        self._engine.spawn(self._forever(self._look, self._follow_all))
        self._engine.spawn(self._forever(self._mail, self._serve_all))

    async def _forever(self, hint: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
        while not self._engine.leaving:
            try:
                await work()
            except StoreError as error:
                logger.warning("the look at other nodes' runs failed; it goes on: %s", error)
            except Exception:
                logger.exception("the look at other nodes' runs failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.nodes.poll_s):
                    await hint.wait()
            hint.clear()

    # --- news: see `Listener`

    def moved(self, run_ids: Sequence[str]) -> None:
        """Read on in runs that another node has committed for."""
        for run_id in run_ids:
            run = self._followed.get(run_id)
            if run is not None:
                self._read_on(run)

    def mailed(self) -> None:
        """Serve messages."""
        self._mail.set()

    def answered(self) -> None:
        """Let those who wait for answers look."""
        waiting, self._answers = self._answers, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def orphaned(self) -> None:
        """Look for runs that nobody drives."""
        self._engine.orphans.set()

    def fenced(self, reason: str, run_ids: Sequence[str] | None = None) -> None:
        """Stop everything: others may drive the runs of this node; or only some of them."""
        if run_ids is None:
            logger.error("%s; its runs are left to others", reason)
        for run in list(self._engine.runs.values()):
            if run_ids is None or run.id in run_ids:
                run.fence(reason)

    # --- readers here of runs elsewhere

    def watch(self, run: LiveRun) -> None:
        """Follow a run that this node does not drive, for as long as somebody holds it."""
        self._followed[run.id] = run
        self._look.set()

    async def _follow_all(self) -> None:
        runs = {run.id: run for run in self._followed.values() if self._is_followed(run)}
        if not runs:
            return
        standings = {place.run_id: place for place in await self.nodes.follow(list(runs))}
        for run_id, run in runs.items():
            place = standings.get(run_id)
            known = (run.record.epoch, run.durable_seq, run.record.status)
            if place is None or (place.epoch, place.last_seq, place.status) != known:
                self._read_on(run)

    def _is_followed(self, run: LiveRun) -> bool:
        driven = run.id in self._engine.runs
        return not driven and not run.ended and run.gone is None

    def _read_on(self, run: LiveRun) -> None:
        if run.id in self._reading:
            self._reading[run.id] = True
        else:
            self._reading[run.id] = False
            self._engine.spawn(self._read_until_still(run))

    async def _read_until_still(self, run: LiveRun) -> None:
        try:
            while True:
                self._reading[run.id] = False
                await self.refresh(run)
                if not self._reading[run.id]:
                    return
        except StoreError as error:
            logger.warning("run %s cannot be followed for now: %s", run.id, error)
        finally:
            del self._reading[run.id]

    async def current(self, run: LiveRun) -> LiveRun | None:
        """Return a run as it is now, whoever drives it; None if it has to be loaded anew.

        Raises: StoreAway, StoreFailed.
        """
        engine = self._engine
        if run.ended or engine.runs.get(run.id) is run:
            return run
        await self.refresh(run)
        stale = run.gone is not None and not run.damaged and not engine.leaving
        return None if stale else run

    async def refresh(self, run: LiveRun) -> None:
        """Bring a run that another node drives up to what is durable now.

        Raises: StoreAway, StoreFailed.
        """
        lock = self._locks.setdefault(run, asyncio.Lock())
        async with lock:
            await self._catch_up(run)

    async def _catch_up(self, run: LiveRun) -> None:
        store = self._engine.store
        record = await store.get(run.id)
        if not self._is_followed(run):
            return
        if record is None or record.last_seq < run.durable_seq:
            run.fence("the run was deleted, or its history is another one")
            return
        while run.durable_seq < record.last_seq:
            seq = run.durable_seq + 1
            frames = await store.read(run.id, seq=seq, limit_bytes=READ_BYTES_MAX)
            if not frames or not self._is_followed(run):
                return  # deleted meanwhile, which the next look sees; or taken up here
            for frame in frames:
                if frame.first_seq > record.last_seq:
                    break
                if not take_frame(run, frame):
                    return
            run.wake()
        take_record(run, record)
        run.wake()

    # --- what is asked of other nodes

    async def signal(self, run: LiveRun, signal: Signal) -> Receipt | None:
        """Have the node that drives a run give it a signal; None if no other node drives it.

        Returns when the signal is durable in the run's journal.

        Raises: RunEnded, AlreadyAnswered, SignalRefused; Overloaded if no answer comes in time:
        then it is not known whether it was given, and it may be sent again under its id.
        """
        fields = {
            "id": signal.signal_id, "name": signal.name, "data": orjson.Fragment(signal.data),
            "by": signal.by, "kinds": sorted(signal.kinds), "ident": signal.ident,
        }  # fmt: skip
        ident = f"signal {signal.name} {signal.signal_id}"
        answer = await self._ask(Message(run.id, ident, "signal", orjson.dumps(fields)))
        return Receipt(answer["outcome"], answer["seq"]) if answer is not None else None

    async def cancel(self, run: LiveRun, by: str | None = None) -> bool:
        """Have the node that drives a run cancel it; False if no other node drives it.

        Raises: Overloaded if no answer comes in time.
        """
        answer = await self._ask(Message(run.id, "cancel", "cancel", orjson.dumps({"by": by})))
        if answer is None:
            return False
        await self.refresh(run)
        return True

    def child_ended(self, parent_id: str, child_id: str) -> None:
        """Let the node that drives a parent know that its child is at its end."""
        data = orjson.dumps({"child": child_id})
        self._engine.spawn(self._leave(Message(parent_id, f"child {child_id}", "child", data)))

    async def turn_came(self, run_id: str) -> bool:
        """Let the node that drives a run look whether it is the first of its key; False if none.

        Raises: StoreAway, StoreFailed.
        """
        return await self.nodes.deposit(Message(run_id, "turn", "turn", b"{}"), answer=False)

    async def _leave(self, message: Message) -> None:
        while not self._engine.leaving:
            try:
                await self.nodes.deposit(message, answer=False)
            except StoreError as error:
                logger.warning("a message to run %s waits: %s", message.run_id, error)
                await asyncio.sleep(1)
            else:
                return

    async def _ask(self, message: Message) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAKE_S
        try:
            while True:
                there = await self.nodes.deposit(message, answer=True)
                if there:
                    await self._until_answered()
                answer = await self.nodes.answer_to(message)
                if answer is not None:
                    return _judged(orjson.loads(answer))
                if not there:
                    return None
                if loop.time() > until_s:
                    raise Overloaded("the node of the run does not answer; try again shortly")
        finally:
            self._engine.spawn(self._withdraw(message))

    async def _until_answered(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._answers.append(waiter)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_POLL_S):
                await waiter

    async def _withdraw(self, message: Message) -> None:
        try:
            await self.nodes.withdraw(message)
        except StoreError as error:
            logger.info("a message to run %s stays for a while: %s", message.run_id, error)

    # --- what other nodes ask of this one

    async def _serve_all(self) -> None:
        for message in await self.nodes.mail():
            place = (message.run_id, message.ident)
            run = self._engine.runs.get(message.run_id)
            if place in self._serving:
                continue
            if run is not None:
                self._serving.add(place)
                self._engine.spawn(self._serve(run, message))
            elif self.edge is not None:
                self._serving.add(place)
                self._engine.spawn(self._rouse(message))

    async def _rouse(self, message: Message) -> None:
        """Bring a run back that rests on this node's own disk; its message is served then."""
        engine = self._engine
        try:
            record = await engine.store.get(message.run_id)
            if record is not None and record.status == "suspended" and engine.waking.take:
                await engine.waking.take([record])
                self.mailed()
        finally:
            self._serving.discard((message.run_id, message.ident))

    async def _serve(self, run: LiveRun, message: Message) -> None:
        try:
            try:
                answer = await self._do(run, message)
            except tuple(_REFUSALS.values()) as error:
                answer = {"refused": type(error).__name__, "args": [_text(a) for a in error.args]}
            await self.nodes.answer(message, orjson.dumps(answer))
        except Fenced:
            return  # whoever has the run now finds the message
        except StoreError as error:
            logger.warning("a message to run %s waits: %s", run.id, error)
        finally:
            self._serving.discard((message.run_id, message.ident))

    async def _do(self, run: LiveRun, message: Message) -> dict[str, Any]:
        engine = self._engine
        asked: dict[str, Any] = orjson.loads(message.data)
        if message.kind == "signal":
            signal = Signal(
                asked["id"], asked["name"], orjson.dumps(asked["data"]), asked["by"],
                frozenset(asked["kinds"]), asked["ident"],
            )  # fmt: skip
            receipt = await engine.waking.signal(run, signal)
            return {"outcome": receipt.outcome, "seq": receipt.seq}
        if message.kind == "cancel":
            await engine.cancel(run, by=asked.get("by"))
        elif message.kind == "child":
            engine.waking.child_awaited(run, asked["child"])
        elif message.kind == "turn":
            engine.waking.turn_awaited(run)
        return {}


def take_frame(run: LiveRun, frame: StoredFrame) -> bool:
    """Give a run, which is only read here, a frame that another node has committed.

    False if the run's history is not the one that was read here before; the run is fenced then.
    """
    if frame.first_seq != run.durable_seq + 1 or frame.hash_in != run.crc:
        run.fence("the run's history is another one than was read here")
        return False
    crc, offset = frame.hash_in, frame.first_offset
    for entry in unpack(frame.data, frame.first_seq):
        if entry.kind in EVENT_KINDS:
            crc = crc32(entry.payload, crc)
            run.recent.add(Event(offset, entry.kind, entry.payload, crc))
            if entry.kind == Kind.HEAD:
                run.head = entry.payload
            elif entry.kind == Kind.REWIND:
                run.rewinds.append((offset, int(orjson.loads(entry.payload)["to"])))
            offset += 1
        elif entry.kind == Kind.BODY_END:
            run.body_end_seq = entry.seq
    run.rehash(crc)
    run.durable_seq, run.durable_offset = frame.first_seq + frame.entries - 1, offset
    run.seq, run.offset = run.durable_seq + 1, offset
    run.recent.trim(offset)
    return True


def take_record(run: LiveRun, record: RunRecord) -> None:
    """Give a run, which is only read here, its row as it is now."""
    run.record = record
    run.error = record.error
    run.at_ms = record.updated_at_ms
    if record.status == "completed":
        run.body_end_seq = max(run.body_end_seq, 0)


def _judged(answer: dict[str, Any]) -> dict[str, Any]:
    refused = _REFUSALS.get(answer.get("refused", ""))
    if refused is None:
        return answer
    args = list(answer["args"])
    if refused is AlreadyAnswered:
        args[1] = args[1].encode()
    raise refused(*args)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
