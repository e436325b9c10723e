"""One suite, every store. Conformance is behaviour."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from durable_endpoints.labels import merged
from durable_endpoints.records import RunRecord, Status
from durable_endpoints.stores.protocol import Begun, Query, Store
from tests.conformance.made import Check, frame, opening, record


def test_frames_come_back_in_order_from_any_place(check: Check) -> None:
    async def scenario(store: Store) -> None:
        assert not await store.append([frame(count=2, opening=record(), events=1, data=b"a")])
        assert not await store.append([frame(first=2, offset=1, events=3, data=b"b")])
        assert not await store.append([frame(first=3, offset=4, data=b"c")])
        whole = await store.read("r1", limit_bytes=100)
        assert [f.data for f in whole] == [b"a", b"b", b"c"]
        assert [f.first_seq for f in whole] == [0, 2, 3]
        assert [f.data for f in await store.read("r1", seq=2, limit_bytes=100)] == [b"b", b"c"]
        assert [f.data for f in await store.read("r1", offset=2, limit_bytes=100)] == [b"b", b"c"]
        assert [f.data for f in await store.read("r1", limit_bytes=1)] == [b"a"]
        assert await store.read("r2", limit_bytes=100) == []
        row = await store.get("r1")
        assert row is not None
        assert (row.last_seq, row.events, row.status) == (3, 4, "running")

    check(scenario)


@pytest.mark.parametrize("count", [1, 2, 33, 75])
def test_all_runs_of_a_batch_are_opened(check: Check, count: int) -> None:
    """However a store parts a batch: each run has its own row, and its own bytes."""
    ids = [f"r{number:03}" for number in range(count)]

    async def scenario(store: Store) -> None:
        batch = [
            frame(one, opening=record(one, principal=f"p {one}"), data=one.encode(), events=number)
            for number, one in enumerate(ids)
        ]
        assert not await store.append(batch)
        for number, one in enumerate(ids):
            row = await store.get(one)
            assert row is not None
            assert (row.run_id, row.principal, row.events) == (one, f"p {one}", number)
            (found,) = await store.read(one, limit_bytes=100)
            assert (found.data, found.events) == (one.encode(), number)

    check(scenario)


def test_i6_epoch_and_last_seq_are_checked_where_it_inserts(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([frame(opening=record()), frame("r2", opening=record("r2"))])
        (taken,) = await store.claim(["r1"], 5)
        assert taken.epoch == 2
        assert await store.append([frame(first=1), frame("r2", first=1)]) == {"r1"}
        assert await store.append([frame(first=1, count=0, status="failed")]) == {"r1"}
        assert await store.append([frame(first=3, epoch=2)]) == {"r1"}
        assert await store.append([frame(first=0, epoch=2)]) == {"r1"}
        assert not await store.append([frame(first=1, epoch=2), frame("r2", first=2)])
        assert len(await store.read("r1", limit_bytes=100)) == 2
        assert len(await store.read("r2", limit_bytes=100)) == 3

    check(scenario)


def test_i17_attempts_count_at_the_claim_and_progress_forgives(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([frame(opening=record())])
        for expected in (1, 2, 3):
            (run,) = await store.claim(["r1"], 5)
            assert (run.attempts, run.epoch) == (expected, expected + 1)
        await store.append([frame(first=1, epoch=4)])
        (run,) = await store.claim(["r1"], 5)
        assert run.attempts == 1
        await store.release(["r1"])
        (run,) = await store.claim(["r1"], 5)
        assert run.attempts == 1
        await store.append([frame(first=2, epoch=run.epoch, status="completed")])
        assert not await store.claim(["r1", "nobody"], 5)

    check(scenario)


def test_i7_a_key_finds_its_run_of_the_same_principal_and_route(check: Check) -> None:
    async def scenario(store: Store) -> None:
        mine = record(principal="ann", idempotency_key="k", fingerprint="f")
        await store.append([frame(opening=mine)])
        found = await store.find("ann", "POST /chat", "k")
        assert found is not None
        assert (found.run_id, found.fingerprint) == ("r1", "f")
        assert await store.find("bob", "POST /chat", "k") is None
        assert await store.find("ann", "POST /other", "k") is None

    check(scenario)


def test_lists_are_newest_first_and_filtered(check: Check) -> None:
    async def scenario(store: Store) -> None:
        for number in range(5):
            run_id = f"r{number}"
            status: Status = "completed" if number % 2 else "running"
            await store.append([frame(run_id, opening=record(run_id), status=status)])
        rows = await store.list(Query(limit=2))
        assert [run.run_id for run in rows] == ["r4", "r3"]
        rows = await store.list(Query(before="r3", statuses=("running",)))
        assert [run.run_id for run in rows] == ["r2", "r0"]
        assert await store.list(Query(name="GET /nothing")) == []

    check(scenario)


def test_i21_a_deleted_run_is_gone_and_known_as_deleted(check: Check) -> None:
    async def scenario(store: Store) -> None:
        await store.append([frame(opening=record(principal="ann"), data=b"secret")])
        assert await store.delete("r1")
        assert not await store.delete("r1")
        assert await store.get("r1") is None
        assert await store.read("r1", limit_bytes=100) == []
        assert await store.was_deleted("r1", "ann")
        assert not await store.was_deleted("r1", None)
        assert not await store.was_deleted("r1", "bob")
        assert not await store.was_deleted("r2", "ann")
        assert await store.append([frame(first=1)]) == {"r1"}

    check(scenario)


def test_unfinished_runs_are_counted(check: Check) -> None:
    async def scenario(store: Store) -> None:
        none = {"running": 0, "suspended": 0, "dead": 0, "diverged": 0}
        assert await store.count() == none
        statuses: tuple[Status, ...] = ("dead", "running", "dead", "completed", "suspended")
        await store.append([opening(f"r{n}", status=s) for n, s in enumerate(statuses)])
        assert await store.count() == {"running": 1, "suspended": 1, "dead": 2, "diverged": 0}

    check(scenario)


def test_what_was_begun_is_counted_by_minute_name_and_status(check: Check) -> None:
    async def scenario(store: Store) -> None:
        assert list(await store.begun("", None, 10)) == []
        begun: tuple[tuple[str, int, str, Status], ...] = (
            ("r0", 1, "POST /a", "completed"), ("r1", 59_999, "POST /a", "completed"),
            ("r2", 60_000, "POST /a", "completed"), ("r3", 60_001, "POST /b\0", "failed"),
            ("r4", 60_002, "POST /a", "suspended"), ("r5", 60_003, "POST /a", "dead"),
            ("r6", 60_004, "POST /a", "suspended"),
        )  # fmt: skip
        await store.append(
            [
                frame(run_id, status=status, opening=RunRecord(run_id, name, "running", at, at))
                for run_id, at, name, status in begun
            ]
        )

        async def counted(since: str, before: str | None, limit: int = 10) -> set[Begun]:
            found = await store.begun(since, before, limit)
            return {replace(one, unfinished=tuple(sorted(one.unfinished))) for one in found}

        assert await counted("r0", None) == {
            Begun(0, "POST /a", "completed", 2),
            Begun(1, "POST /a", "completed", 1),
            Begun(1, "POST /b\0", "failed", 1),
            Begun(1, "POST /a", "suspended", 2, ("r4", "r6")),
            Begun(1, "POST /a", "dead", 1, ("r5",)),
        }
        assert await counted("r1", "r3") == {
            Begun(0, "POST /a", "completed", 1), Begun(1, "POST /a", "completed", 1),
        }  # fmt: skip
        assert await counted("r0", "r6", 2) == {
            Begun(1, "POST /a", "dead", 1, ("r5",)),
            Begun(1, "POST /a", "suspended", 1, ("r4",)),
        }

    check(scenario)


def test_labels_are_written_with_their_frame_and_found(check: Check) -> None:
    async def scenario(store: Store) -> None:
        async def found(*labels: str, **more: Any) -> list[str]:
            return [run.run_id for run in await store.list(Query(labels=labels, **more))]

        acme = '{"plan":"free","tenant":"acme"}'
        await store.append([opening("r1", labels=acme), opening("r2", labels='{"tenant":"acme"}')])
        await store.append([opening("r3"), opening("r4", labels='{"tenant":"acme:eu"}')])
        assert await found("tenant:acme") == ["r2", "r1"]
        assert await found("tenant:acme", "plan:free") == ["r1"]
        assert await found("tenant:acme", before="r2") == ["r1"]
        assert await found("tenant:acme", limit=1) == ["r2"]
        assert await found("tenant:acme:eu") == ["r4"]
        assert await found("tenant:free") == await found("tenant:acme", "tenant:b") == []
        assert await found("tenant:acme", statuses=("completed",)) == []
        assert await found("tenant:acme", statuses=("running",)) == ["r2", "r1"]
        again = frame("r1", 1, labels='{"tenant":"b"}')
        await store.append([again, frame("r2", 1), frame("r3", 1)])
        assert await found("tenant:acme") == ["r2"]
        assert await found("tenant:b") == ["r1"]
        assert await found("plan:free") == []
        run = await store.get("r2")
        assert run is not None
        assert run.labels == '{"tenant":"acme"}'
        (claimed,) = await store.claim(["r1"], 9)
        assert claimed.labels == '{"tenant":"b"}'
        assert await store.append([frame("r2", 9, labels='{"tenant":"x"}')]) == {"r2"}
        assert await found("tenant:x") == []
        assert await store.delete("r2")
        assert await found("tenant:acme") == []

    check(scenario)


def test_labels_come_back_as_they_were(check: Check) -> None:
    async def scenario(store: Store) -> None:
        for number, text in enumerate(("'\"\\", "\ue000", "\ue0000", "\U0010ffff", " a:b ", "%_")):
            labels = merged(None, {"x.y": text, text.replace(":", ""): "v"})
            await store.append([opening(f"r{number}", labels=labels)])
            (run,) = await store.list(Query(labels=(f"x.y:{text}",)))
            assert run.labels == labels

    check(scenario)
