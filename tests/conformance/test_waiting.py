"""Suspended runs, their timers and waits; what is claimed again; what texts may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from durable_endpoints.records import Frame, RunRecord, Status
from durable_endpoints.stores.protocol import Query, Store, WaitQuery
from tests.conformance.made import Check, frame, opening, record, wait


async def suspended(store: Store, run_id: str = "r1", wake_at_ms: int | None = None) -> None:
    """Begin a run and suspend it."""
    await store.append([opening(run_id)])
    await store.append(
        [frame(run_id, 1, status="suspended", wake_at_ms=wake_at_ms, waiting='["for x"]')]
    )


async def due(store: Store, at_ms: int) -> list[str]:
    return [run.run_id for run in await store.list(Query(("suspended",), due_ms=at_ms))]


async def idents(store: Store, query: WaitQuery) -> list[str]:
    return [f"{found.run_id} {found.ident}" for found in await store.waits(query)]


def test_i16_a_timer_is_due_at_its_time_and_not_before(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await suspended(store, "r1", wake_at_ms=100)
        await suspended(store, "r2", wake_at_ms=200)
        await suspended(store, "r3")
        assert await due(store, 99) == []
        assert await due(store, 100) == ["r1"]
        assert await due(store, 10**15) == ["r2", "r1"]
        row = await store.get("r1")
        assert row is not None
        assert (row.status, row.wake_at_ms, row.waiting) == ("suspended", 100, '["for x"]')

    check(scenario)


def test_a_claim_wakes_a_suspended_run(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await suspended(store, wake_at_ms=100)
        (run,) = await store.claim(["r1"], 5)
        assert (run.status, run.epoch, run.attempts) == ("running", 2, 0)  # it was no crash
        assert (run.wake_at_ms, run.waiting, run.updated_at_ms) == (None, None, 5)
        assert await store.get("r1") == run
        assert await due(store, 10**15) == []
        assert await store.append([frame(first=2, status="completed")]) == {"r1"}
        assert not await store.append([frame(first=2, epoch=2, status="completed")])

    check(scenario)


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "dead", "diverged"])
def test_who_is_claimed_again(check: Check, status: Status) -> None:
    async def scenario(store: Store) -> None:
        await store.append([opening()])
        await store.append([frame(first=1, status=status, error="E: why")])
        ids = [run.run_id for run in await store.claim(["r1"], 5)]
        assert ids == ["r1"] * (status == "diverged")
        (ids,) = [[run.run_id for run in await store.claim(["r1"], 5, dead=True)]]
        assert ids == ["r1"] * (status in ("dead", "diverged"))
        row = await store.get("r1")
        assert row is not None
        assert (row.status, row.error) == (status, "E: why")

    check(scenario)


def test_claims_come_back_in_the_order_asked_for_and_once(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([opening("r1"), opening("r2"), opening("r3")])
        found = await store.claim(["r3", "nobody", "r1"], 5)
        assert [run.run_id for run in found] == ["r3", "r1"]
        assert await store.claim([], 5) == []

    check(scenario)


def test_the_end_of_a_child_makes_its_suspended_parent_due(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await suspended(store, "r1", wake_at_ms=10**15)
        await store.append([opening("r2"), opening("r3"), opening("r4")])
        await store.append([frame("r2", 1, status="completed", wakes="r1")])
        assert await due(store, 1) == ["r1"]
        await store.claim(["r1"], 5)
        # A parent that is awake is not concerned, nor one that nobody knows.
        assert not await store.append([frame("r3", 1, wakes="r1"), frame("r4", 1, wakes="r9")])
        assert await due(store, 10**15) == []

    check(scenario)


def test_a_parent_that_is_suspended_in_its_childs_batch_becomes_due(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([opening("r1"), opening("r2")])
        asleep = frame("r1", 1, status="suspended", wake_at_ms=10**15)
        await store.append([asleep, frame("r2", 1, status="completed", wakes="r1")])
        assert await due(store, 1) == ["r1"]

    check(scenario)


def test_i6_what_a_fenced_frame_brings_along_does_not_happen(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await suspended(store, "r1", wake_at_ms=10**15)
        await store.append([frame("r2", opening=record("r2"), waits=(wait("r2", "kept"),))])
        await store.claim(["r2"], 5)
        late = frame("r2", 1, waits=(wait("r2"),), answered=("kept",), wakes="r1")
        assert await store.append([late]) == {"r2"}
        assert await due(store, 1) == []
        assert await idents(store, WaitQuery()) == ["r2 kept"]

    check(scenario)


def test_waits_are_opened_and_answered_with_their_frames(check: Check) -> None:
    async def scenario(store: Store) -> None:
        one = wait(ident="a", until_ms=9, summary="Pay?", principal="ann", match='{"order":7}')
        first = frame(opening=record(), waits=(one, wait(ident="b"), wait(ident="c")))
        await store.append([first])
        assert (await store.waits(WaitQuery()))[0] == one
        await store.append([frame(first=1, answered=("b", "nothing"), waits=(wait(ident="d"),))])
        assert await idents(store, WaitQuery()) == ["r1 a", "r1 c", "r1 d"]
        await store.append([frame(first=2, waits=(wait(ident="c", name="again"),))])
        assert await idents(store, WaitQuery(name="again")) == ["r1 c"]
        await store.append([frame(first=3, waits=(wait(ident="e"),), answered=("e", "a"))])
        assert await idents(store, WaitQuery()) == ["r1 c", "r1 d"]
        await store.append([frame(first=4, status="completed", answered=("*",))])
        assert await idents(store, WaitQuery()) == []

    check(scenario)


def test_waits_are_found_by_name_kind_run_and_principal(check: Check) -> None:
    async def scenario(store: Store) -> None:
        batch = [
            frame(run_id, opening=record(run_id), waits=waits)
            for run_id, waits in (
                ("r1", (wait("r1", "z", kind="approval"), wait("r1", "a", principal="bob"))),
                ("r2", (wait("r2", "x", principal="ann"), wait("r2", "y", "go"))),
            )
        ]
        await store.append(batch)
        assert await idents(store, WaitQuery()) == ["r1 a", "r1 z", "r2 x", "r2 y"]
        assert await idents(store, WaitQuery(limit=1)) == ["r1 a"]
        assert await idents(store, WaitQuery("go")) == ["r2 y"]
        assert await idents(store, WaitQuery(kinds=("approval", "decision"))) == ["r1 z"]
        assert await idents(store, WaitQuery(run_id="r2")) == ["r2 x", "r2 y"]
        mine = WaitQuery(principal="ann", any_principal=False)
        assert await idents(store, mine) == ["r2 x"]
        assert await idents(store, WaitQuery(any_principal=False)) == ["r1 z", "r2 y"]
        await store.claim(["r2"], 5)
        await store.append([frame("r2", 1, epoch=2, status="completed", answered=("*",))])
        await store.delete("r2")
        assert await idents(store, WaitQuery()) == ["r1 a", "r1 z"]

    check(scenario)


def test_events_find_the_waits_that_they_match(check: Check) -> None:
    async def scenario(store: Store) -> None:
        waits = (
            wait(ident="none"),
            wait(ident="one", match='{"order":7}'),
            wait(ident="two", match='{"order":7,"shop":"a"}'),
            wait(ident="eight", match='{"order":8}'),
            wait(ident="text", match='{"order":"7"}'),
            wait(ident="other", name="sent", match='{"order":7}'),
        )
        await store.append([frame(opening=record(), waits=waits)])

        async def found(**payload: object) -> list[str]:
            return [w.ident for w in await store.waits(WaitQuery("paid", payload=payload))]

        assert await found(order=7) == ["one"]
        assert await found(order=7, shop="a", more=[1]) == ["one", "two"]
        assert await found(order="7") == ["text"]
        assert await found(shop="a") == []
        assert await found() == []

    check(scenario)


def test_lists_by_parent_and_by_concurrency_key(check: Check) -> None:
    async def scenario(store: Store) -> None:
        for run_id, more in (
            ("r1", {}), ("r2", {"parent": "r1"}), ("r3", {"parent": "r1"}),
            ("r4", {"concurrency_key": "thread 1"}),
        ):  # fmt: skip
            await store.append([frame(run_id, opening=record(run_id, **more))])
        assert [run.run_id for run in await store.list(Query(parent="r1"))] == ["r3", "r2"]
        (run,) = await store.list(Query(concurrency_key="thread 1", name="POST /chat"))
        assert (run.run_id, run.concurrency_key) == ("r4", "thread 1")
        assert await store.list(Query(concurrency_key="thread 2")) == []
        # Of one place: the unfinished ones, in the order in which they were opened.
        for run_id, more in (
            ("r9", {}), ("r8", {"principal": "ann"}), ("r7", {"principal": ""}), ("r0", {}),
        ):  # fmt: skip
            await store.append(
                [frame(run_id, opening=record(run_id, concurrency_key="thread 1", **more))]
            )
        asked = Query(name="POST /chat", concurrency_key="thread 1")
        assert [run.run_id for run in await store.list(asked)] == ["r4", "r9", "r0"]
        (run,) = await store.list(replace(asked, principal="ann"))
        assert run.run_id == "r8"
        await store.append([frame("r4", 1, status="completed")])
        assert [run.run_id for run in await store.list(asked)] == ["r9", "r0"]
        assert [run.run_id for run in await store.list(replace(asked, limit=1))] == ["r9"]

    check(scenario)


def test_what_this_process_drives_itself_it_may_claim(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([opening("r1"), opening("r2")])
        rows = await store.list(Query(("running",), unowned=True))
        assert [run.run_id for run in rows] == ["r2", "r1"]

    check(scenario)


STRANGE = ["a\0b", "\0", "\ue000", "\ue0000\0", "\U0010ffff", "'\"\\", "line\r\nline", " "]


@pytest.mark.parametrize("text", STRANGE)
def test_texts_come_back_as_they_were(check: Check, text: str) -> None:
    async def scenario(store: Store) -> None:
        row = RunRecord(
            "r1", text, "running", 1, 1, principal=text, idempotency_key=text, fingerprint=text,
            concurrency_key=text,
        )  # fmt: skip
        one = wait(name=text, summary=text, principal=text)
        await store.append([frame(opening=row, error=text, waiting=text, waits=(one,))])
        found = await store.find(text, text, text)
        assert found is not None
        assert (found.name, found.principal, found.idempotency_key) == (text, text, text)
        assert (found.fingerprint, found.concurrency_key) == (text, text)
        assert (found.error, found.waiting) == (text, text)
        assert [run.run_id for run in await store.list(Query(name=text, principal=text))] == ["r1"]
        assert list(await store.waits(WaitQuery(name=text))) == [one]
        assert await store.find(text + "0", text, text) is None

    check(scenario)


def test_large_numbers_and_bytes_come_back(check: Check) -> None:
    async def scenario(store: Store) -> None:
        data = bytes(range(256)) * 4096
        first = Frame("r1", 1, 0, 1000, 0, 999, 2**32 - 1, data, 2**47, "running", record())
        await store.append([first])
        (stored,) = await store.read("r1", limit_bytes=1)
        assert (stored.data, stored.hash_in, stored.events) == (data, 2**32 - 1, 999)
        row = await store.get("r1")
        assert row is not None
        assert row.updated_at_ms == 2**47

    check(scenario)


def test_many_small_frames_are_read_from_any_event(check: Check) -> None:
    """Frames without events between those with, so that a place is not found by its number."""

    async def scenario(store: Store) -> None:
        await store.append([frame(count=2, opening=record(), events=1, data=b"0")])
        seq, offset = 2, 1
        for number in range(1, 60):
            events = number % 3
            await store.append(
                [frame(first=seq, count=2, offset=offset, events=events, data=b"%d" % number)]
            )
            seq, offset = seq + 2, offset + events
        whole = await store.read("r1", limit_bytes=10_000)
        assert [f.data for f in whole] == [b"%d" % number for number in range(60)]
        for place in range(offset):
            found = await store.read("r1", offset=place, limit_bytes=10_000)
            first = next(f for f in whole if f.first_offset + f.events > place)
            assert found[0] == first
            assert found == [f for f in whole if f.first_offset + f.events > place]
        assert await store.read("r1", offset=offset, limit_bytes=10_000) == []
        for place in range(seq):
            found = await store.read("r1", seq=place, limit_bytes=10_000)
            assert found == [f for f in whole if f.first_seq + f.entries > place]

    check(scenario)
