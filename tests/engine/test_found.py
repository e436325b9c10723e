"""What was found wrong with waiting, one test each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from durable_endpoints import (
    AlreadyAnswered,
    Retry,
    approval,
    durable,
    emit,
    sleep,
    step,
    wait_for_signal,
)
from durable_endpoints.engine.engine import Engine
from durable_endpoints.engine.functions import Run, begin_call
from durable_endpoints.engine.reader import event_at, read_journal
from durable_endpoints.engine.wait import Signal
from durable_endpoints.engine.waiting import ApprovalRequest
from durable_endpoints.errors import Overloaded, StoreError
from durable_endpoints.ids import new_run_id
from durable_endpoints.limits import WAKE_S
from durable_endpoints.records import Entry, Frame, Kind
from durable_endpoints.stores.memory import MemoryStore
from durable_endpoints.stores.open import open_store
from durable_endpoints.stores.protocol import Store, WaitQuery
from tests.engine.test_waits import until_status
from tests.engine.worlds import PATIENCE_S, World, play, world

# Longer than this somebody is kept waiting who was not to wait: less than the time for which the
# engine waits for a run, more than a busy machine stands still.
HELD_UP_S = WAKE_S / 2


async def until_waits(run: Run, waits: int = 1) -> None:
    """Wait until a run in memory has come to so many waits."""
    async with asyncio.timeout(PATIENCE_S):
        while len(run._run.waits.open) < waits:
            await asyncio.sleep(0.001)


def at_once(one: World) -> None:
    """Suspend at once; and let approvals have links."""
    one.engine.waking.suspend_grace_s = 0
    one.engine.waking.sign_path = lambda run_id, ident, until_ms: f"{run_id}/{ident}"


@durable
async def twice() -> list[Any]:
    return [await wait_for_signal("go"), await wait_for_signal("go")]


@durable
async def asked_once(then: str = "") -> Any:
    answer = await wait_for_signal("go", once=True)
    if then:
        await wait_for_signal(then)
    return answer


def test_many_signals_at_once_wake_a_run_once() -> None:
    @durable
    async def many() -> list[Any]:
        return [await wait_for_signal("go") for _ in range(20)]

    async def scenario(one: World) -> None:
        at_once(one)
        run = await one.start(many)
        await until_status(one, run.id, "suspended")
        await asyncio.gather(*(run.signal("go", n, signal_id=f"s{n}") for n in range(20)))
        got = await (await one.ended_for_good(run.id)).result()
        assert sorted(got) == list(range(20))

    play(scenario)


def test_a_cancel_and_a_signal_at_once_are_one_end() -> None:
    async def scenario(one: World) -> None:
        at_once(one)
        for _ in range(20):
            run = await one.start(twice)
            await until_status(one, run.id, "suspended")
            outcomes = await asyncio.gather(
                run.signal("go", 1), run.cancel(), run.signal("go", 2), return_exceptions=True
            )
            assert outcomes[1] is None, outcomes
            record = (await one.ended_for_good(run.id))._run.record
            kinds = [entry.kind.name for entry in await one.entries(run.id)]
            assert kinds.count("COMPLETED") + kinds.count("CANCELLED") == 1, kinds
            assert record.status in ("cancelled", "completed")
            for outcome in (outcomes[0], outcomes[2]):
                assert outcome is None or type(outcome).__name__ == "RunEnded", outcomes

    play(scenario)


def test_a_wait_that_was_given_up_holds_up_no_signal() -> None:
    """Two waits race, the loser is cancelled: whoever signals the run later is not kept waiting."""

    @durable
    async def either() -> list[Any]:
        racing = {asyncio.create_task(wait_for_signal(name)) for name in ("yes", "no")}
        done, pending = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return [*(task.result() for task in done), await wait_for_signal("then")]

    async def scenario(one: World) -> None:
        at_once(one)
        run = await one.start(either)
        await until_status(one, run.id, "suspended")
        await run.signal("yes", 1)
        await until_status(one, run.id, "suspended")
        began_s = asyncio.get_running_loop().time()
        await run.signal("then", 2)
        assert asyncio.get_running_loop().time() - began_s < HELD_UP_S
        assert await (await one.ended_for_good(run.id)).result() == [1, 2]

    play(scenario)


def test_a_wait_that_was_given_up_is_listed_no_more() -> None:
    @durable
    async def impatient() -> Any:
        try:
            await asyncio.wait_for(wait_for_signal("soon"), 0.05)
        except TimeoutError:
            return await wait_for_signal("late")

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 60  # the timeout is one of the process
        run = await one.start(impatient)
        async with asyncio.timeout(PATIENCE_S):
            while "late" not in [w.name for w in await one.store.waits(WaitQuery())]:
                await asyncio.sleep(0.005)
        assert [wait.name for wait in await one.store.waits(WaitQuery())] == ["late"]
        await run.signal("late", 1)
        assert await (await one.ended_for_good(run.id)).result() == 1

    play(scenario)


def test_a_signal_that_was_taken_is_known_also_when_the_run_has_ended() -> None:
    """Its sender did not get the answer, and sends it again."""

    async def scenario(one: World) -> None:
        run = await one.start(asked_once)
        first = await one.engine.signal(run._run, "go", 1, signal_id="one")
        await one.ended_for_good(run.id)
        again = await one.engine.signal(run._run, "go", 1, signal_id="one")
        assert (again.outcome, again.seq) == ("known", first.seq)

    play(scenario)


def test_a_second_answer_is_told_the_first_also_when_the_run_has_ended() -> None:
    async def scenario(one: World) -> None:
        run = await one.start(asked_once)
        await run.signal("go", "first")
        await one.ended_for_good(run.id)
        with pytest.raises(AlreadyAnswered) as refused:
            await run.signal("go", "second")
        assert b"first" in refused.value.answer

    play(scenario)


def test_one_id_on_two_names_is_two_signals() -> None:
    @durable
    async def two() -> list[Any]:
        return [await wait_for_signal("a"), await wait_for_signal("b")]

    async def scenario(one: World) -> None:
        run = await one.start(two)
        await run.signal("a", 1, signal_id="1")
        await run.signal("b", 2, signal_id="1")
        assert await (await one.ended_for_good(run.id)).result() == [1, 2]

    play(scenario)


def test_a_person_may_be_faster_than_who_tells_them() -> None:
    """The link is out as soon as `notify` has sent it, which is before it returns."""
    refusals: list[BaseException] = []

    async def scenario(one: World) -> None:
        at_once(one)

        async def notify(request: ApprovalRequest) -> None:
            run = await one.engine.observe(request.run_id)
            ident = request.path.rpartition("/")[2]
            try:
                await one.engine.signal(run, "refund", {"approved": True}, ident=ident)
            except Exception as error:
                refusals.append(error)

        @durable
        async def asks() -> bool:
            return (await approval("refund", timeout=PATIENCE_S / 2, notify=notify)).approved

        run = await one.start(asks)
        ended = await one.ended_for_good(run.id)
        assert not refusals
        assert await ended.result() is True

    play(scenario)


def test_a_summary_may_hold_anything() -> None:
    """What a model writes, cut in the middle of a letter, for instance."""

    @durable
    async def asks() -> bool:
        return (await approval("refund", summary="half a letter: \ud83d")).approved

    async def scenario(one: World) -> None:
        at_once(one)
        run = await one.start(asks)
        await until_status(one, run.id, "suspended")
        await run.signal("refund", {"approved": True})
        assert await (await one.ended_for_good(run.id)).result() is True

    play(scenario)


def test_a_server_that_stops_takes_no_signal_for_a_suspended_run() -> None:
    async def scenario(one: World) -> None:
        at_once(one)
        run = await one.start(asked_once)
        await until_status(one, run.id, "suspended")
        await one.engine.drain(0)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(Overloaded):
            await run.signal("go", 1)
        assert asyncio.get_running_loop().time() - began_s < HELD_UP_S

    play(scenario)


def test_an_event_finds_a_run_by_a_field_with_a_comma(tmp_path: Path) -> None:
    @durable
    async def matched() -> Any:
        return await wait_for_signal("paid", match={"a,b": 1})

    async def main() -> None:
        async with world(open_store(f"sqlite:///{tmp_path}/durable.db")) as one:
            at_once(one)
            run = await one.start(matched)
            await until_status(one, run.id, "suspended")
            found = await one.store.waits(WaitQuery("paid", payload={"a,b": 1, "c": 2}))
            assert [wait.run_id for wait in found] == [run.id]

    asyncio.run(main())


def test_a_timer_and_a_signal_at_once_are_one_waking() -> None:
    @durable
    async def either() -> Any:
        return list(await asyncio.gather(sleep(0.15), wait_for_signal("go")))

    async def scenario(one: World) -> None:
        at_once(one)
        runs = [await one.start(either) for _ in range(30)]
        for run in runs:
            await until_status(one, run.id, "suspended")
        await asyncio.gather(*(run.signal("go", 1) for run in runs))
        for run in runs:
            ended = await one.ended_for_good(run.id)
            assert await ended.result() == [None, 1]

    play(scenario)


def test_an_approval_that_was_notified_is_decided_after_its_suspension() -> None:
    async def scenario(one: World) -> None:
        at_once(one)
        told: list[str] = []

        async def notify(request: ApprovalRequest) -> None:
            told.append(request.path)

        @durable
        async def asks() -> bool:
            return (await approval("refund", notify=notify)).approved

        run = await one.start(asks)
        await until_status(one, run.id, "suspended")
        async with asyncio.timeout(HELD_UP_S):
            await run.signal("refund", {"approved": True})
        assert await (await one.ended_for_good(run.id)).result() is True
        assert len(told) == 1

    play(scenario)


def test_a_child_that_was_fenced_before_it_was_durable_is_begun_again() -> None:
    """Its parent is taken up again while it has not left memory yet."""

    @durable
    async def child() -> str:
        return "grown up"

    @durable
    async def parent() -> Any:
        return await wait_for_signal("go")

    async def scenario(one: World) -> None:
        run = await one.start(parent)
        engine = one.engine
        lost = begin_call(engine, child, (), {}, run_id=new_run_id(1), parent=run.id)
        lost.fence("the node's lease is over")  # in the turn in which it began
        live = engine.runs[run.id]
        await engine.waking.begin_child(live, lost.id, child, (), {})
        assert await Run(engine, engine.runs[lost.id]).result() == "grown up"
        await run.signal("go", 1)
        assert await run.result() == 1

    play(scenario)


def test_runs_leave_memory_however_busy_the_log_is() -> None:
    @durable
    async def little() -> int:
        return 1

    async def scenario(one: World) -> None:
        engine = one.engine
        most = 0

        async def keep_busy() -> None:
            nonlocal most
            for _ in range(50):
                run = await one.start(little)
                await run.result()
                most = max(most, len(engine.runs))

        await asyncio.gather(*(keep_busy() for _ in range(8)))
        assert most < 60

    play(scenario)


def test_a_run_that_only_waits_dies_of_nobody_elses_crashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes that end before the grace of its waits is over are no fault of theirs."""
    monkeypatch.setattr("tests.engine.worlds.Engine", partial(Engine, suspend_grace_s=3600))

    async def scenario(one: World) -> None:
        run = await one.start(asked_once)
        await until_waits(run)
        await one.idle()
        await one.crash()
        await one.boot()
        await until_status(one, run.id, "suspended")

    play(scenario)


class SlowToAnswer(MemoryStore):
    """What is appended is there; that it is, is told only when `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def append(self, frames: Sequence[Frame]) -> frozenset[str]:
        fenced = await super().append(frames)
        await self.go_on.wait()
        return fenced


def test_a_cursor_of_what_another_node_showed_is_waited_for() -> None:
    """Others read a commit in the store before the one who made it has its answer."""

    @durable
    async def tells() -> None:
        emit("one")
        await wait_for_signal("more")
        emit("two")
        await wait_for_signal("more")

    store = SlowToAnswer()

    async def main() -> None:
        async with world(store) as one:
            one.engine.waking.suspend_grace_s = 60  # `event_at` is asked of this run in memory
            run = (await one.start(tells))._run
            await one.idle()
            assert await event_at(store, run, 1) is None
            store.go_on.clear()
            signalling = asyncio.create_task(one.engine.signal(run, "more"))
            async with asyncio.timeout(PATIENCE_S):
                while (await store.get(run.id)).events < 2:  # type: ignore[union-attr]
                    await asyncio.sleep(0.001)
            asked = asyncio.create_task(event_at(store, run, 1))
            assert (await asyncio.wait({asked}, timeout=0.05))[1]
            store.go_on.set()
            event = await asked
            assert event is not None
            assert event.payload == b"data: two\n\n"
            await signalling
            assert await event_at(store, run, 2) is None

    asyncio.run(main())


def test_a_wait_that_is_cancelled_before_there_is_room_is_closed() -> None:
    async def scenario(one: World) -> None:
        log, asked = one.engine.log, asyncio.Event()

        async def room() -> None:
            """Be full as soon as the wait has begun."""
            if any(run.waits.open for run in one.engine.runs.values()):
                asked.set()
                await asyncio.Event().wait()

        @durable
        async def gives_up_early() -> Any:
            log.room, log._is_full = room, lambda: True  # type: ignore[method-assign]
            log.full = True
            waiting = asyncio.create_task(wait_for_signal("go"))
            await asked.wait()
            del log.room, log._is_full
            log.full = False
            waiting.cancel()
            await asyncio.wait({waiting})
            await wait_for_signal("end")
            return await wait_for_signal("go")

        run = await one.start(gives_up_early)
        async with asyncio.timeout(PATIENCE_S):
            while "end" not in [wait.name for wait in run._run.waits.open.values()]:
                await asyncio.sleep(0.001)
        assert (await one.engine.signal(run._run, "go", 1)).outcome == "kept"
        await run.signal("end")
        assert await (await one.ended_for_good(run.id)).result() == 1

    play(scenario)


def test_a_wait_that_is_cancelled_in_the_moment_of_its_answer_holds_up_nobody() -> None:
    tasks: list[asyncio.Task[Any]] = []

    @durable
    async def hesitates() -> int:
        tasks[:] = [asyncio.create_task(wait_for_signal(name)) for name in ("go", "stay")]
        await asyncio.wait(tasks[:1])
        assert tasks[0].cancelled()
        tasks[1].cancel()
        return await told(1) + await told(2)

    async def scenario(one: World) -> None:
        one.engine.waking.suspend_grace_s = 60  # it is given its signal behind the engine's back
        run = await one.start(hesitates)
        await until_waits(run, 2)
        run._run.waits.receive(Signal("s1", "go", b"1"))
        tasks[0].cancel()
        assert await (await one.ended_for_good(run.id)).result() == 3

    play(scenario)


@step(retry=Retry(attempts=2, initial=0.001))
async def breaks() -> None:
    raise ConnectionError("not today")


@durable
async def gives_up() -> None:
    await breaks()


def test_a_cancel_while_a_dead_run_is_being_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(store: Store, run_id: str, **where: Any) -> list[Entry]:
        reading.set()
        await go_on.wait()
        return await read_journal(store, run_id, **where)

    async def scenario(one: World) -> None:
        dead = await one.ended((await one.start(gives_up)).id)
        assert dead.status == "dead"
        monkeypatch.setattr("durable_endpoints.engine.steering.read_journal", slowly)
        retrying = asyncio.create_task(dead.retry())
        await reading.wait()
        cancelling = asyncio.create_task((await one.run_of(dead.id)).cancel())
        for _ in range(10):
            await asyncio.sleep(0.002)
        go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(retrying, cancelling)
            while (await one.store.get(dead.id)).status != "cancelled":  # type: ignore[union-attr]
                await asyncio.sleep(0.002)
        kinds = [entry.kind for entry in await one.entries(dead.id)]
        assert kinds[-1] == Kind.CANCELLED
        assert kinds.index(Kind.RETRY) < kinds.index(Kind.CANCEL)

    play(scenario)


@pytest.mark.parametrize("deed", ["retry", "cancel"])
def test_what_goes_wrong_with_a_dead_run_goes_right_next_time(
    deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(store: Store, run_id: str, **where: Any) -> list[Entry]:
        raise StoreError("no answer; try again")

    async def scenario(one: World) -> None:
        dead = await one.ended((await one.start(gives_up)).id)
        with monkeypatch.context() as patch:
            patch.setattr("durable_endpoints.engine.steering.read_journal", fails)
            with pytest.raises(StoreError):
                await getattr(dead, deed)()
        async with asyncio.timeout(PATIENCE_S):
            await getattr(await one.run_of(dead.id), deed)()
            ended = await one.ended(dead.id)
        assert ended.status == ("cancelled" if deed == "cancel" else "dead")

    play(scenario)


@step
async def told(number: int) -> int:
    return number


@step
async def words() -> AsyncIterator[str]:
    for word in ("a", "b", "c"):
        yield word


async def _gathered(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


@durable
async def streamed_by_another_task() -> list[str]:
    """As a response does: the endpoint makes the stream, a task of the framework runs it."""
    await told(1)
    return await asyncio.create_task(_gathered(words()))


@durable
async def handed_on() -> int:
    async def body() -> int:
        return await told(2) + await told(3)

    return await told(1) + await asyncio.create_task(body())


@durable
async def goes_on_beside() -> list[Any]:
    stream = asyncio.create_task(_gathered(words()))
    return [await told(1), await stream]


@durable
async def goes_on_after() -> list[Any]:
    return [await asyncio.create_task(_gathered(words())), await told(1)]


@pytest.mark.parametrize(
    ("handler", "apart"),
    [(streamed_by_another_task, False), (handed_on, False), (goes_on_beside, True),
     (goes_on_after, True)],
)  # fmt: skip
def test_completions_keep_apart_only_where_two_tasks_get_them(handler: Any, apart: bool) -> None:
    async def scenario(one: World) -> None:
        run = await one.start(handler)
        await run.result()
        kinds = {entry.kind for entry in await one.entries(run.id)}
        assert (Kind.SHARED in kinds) is apart

    play(scenario)


def test_what_is_driven_anew_has_not_failed_yet() -> None:
    """The word of an attempt that ended without an entry is not the next one's."""

    async def scenario(one: World) -> None:
        run = one.engine.begin("run", version="1", args=b"{}", payload=b"")
        await run.durable(0)
        run.error = "the run took longer than its timeout"
        one.engine.forget(run)
        watching = await one.engine.observe(run.id)
        (again,) = await one.engine.claim([run.id])
        assert again is watching
        assert again.error is None

    play(scenario)


@durable(timeout=0.05)
async def timed_out() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_timeout_that_was_over_before_the_recovery_ends_the_run(loop: Any) -> None:
    """Whether or not the loop has begun the handler's task by then."""

    async def scenario() -> None:
        async with world() as one:
            run = await one.start(timed_out)
            await (await one.engine.observe(run.id)).durable(0)
            await one.crash()
            await asyncio.sleep(0.06)
            await one.boot()
            assert (await one.ended(run.id)).status == "failed"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


class Gone(MemoryStore):
    """What brings a run's status waits there, once, and is left to others in the end."""

    def __init__(self, status: str) -> None:
        super().__init__()
        self.status = status
        self.waiting, self.back = asyncio.Event(), asyncio.Event()

    async def append(self, batch: Sequence[Frame]) -> frozenset[str]:
        if self.back.is_set() or not any(frame.status == self.status for frame in batch):
            return await super().append(batch)
        self.waiting.set()
        await self.back.wait()
        return frozenset(frame.run_id for frame in batch)


async def fenced(one: World, run: Run, store: Gone, first: str) -> None:
    """Have a run's node lose its lease for a while, and nobody else take the run."""
    live = one.engine.runs[run.id]
    async with asyncio.timeout(PATIENCE_S):
        await store.waiting.wait()
        if first == "the node":
            live.fence("the lease of this node is over")
            await asyncio.sleep(0)
        store.back.set()
        while run.id in one.engine.runs:
            await asyncio.sleep(0.001)
    assert live.gone is not None
    await one.recovery.sweep()


@pytest.mark.parametrize("first", ["the node", "the store"])
def test_i16_a_run_fenced_on_its_way_out_of_memory_is_driven_on(first: str) -> None:
    async def main() -> None:
        store = Gone("suspended")
        async with world(store) as one:
            at_once(one)
            run = await one.start(asked_once)
            await fenced(one, run, store, first)
            await (await one.run_of(run.id)).signal("go", 1)
            assert await (await one.ended_for_good(run.id)).result() == 1

    asyncio.run(main())


@pytest.mark.parametrize("first", ["the node", "the store"])
def test_i16_a_call_fenced_at_its_end_is_driven_on(first: str) -> None:
    @durable
    async def quick() -> str:
        await step(asyncio.sleep)(0)
        return "done"

    async def main() -> None:
        store = Gone("completed")
        async with world(store) as one:
            run = await one.start(quick)
            await fenced(one, run, store, first)
            assert await (await one.ended_for_good(run.id)).result() == "done"

    asyncio.run(main())
