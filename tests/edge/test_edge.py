"""An edge node and the centre: what is shipped, handed over, taken over, and what is void then."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from durable_endpoints import Run
from durable_endpoints.asgi.edge import node_risk, numbers, run_risk
from durable_endpoints.errors import Fenced, Overloaded, StoreAway
from durable_endpoints.stores.protocol import PATIENCE_S, Query
from tests.edge.sites import Site, acted, acts, gives_up, has_child, naps, site, strolls
from tests.postgres.test_remote import read_all
from tests.support.gated import asks, counts, open_gate, turns

Play = Callable[..., None]
# Over within a test, but not by a pause of its machine.
SHORT_TTL_S = 4


@pytest.fixture
def play(postgres: Callable[[], str], tmp_path: Path) -> Play:
    """Play a scenario on an edge node and a central one."""

    def run(scenario: Callable[[Site], Awaitable[None]], ttl_s: float = 30, **more: Any) -> None:
        async def main() -> None:
            address = f"{postgres()}&lease_ttl={ttl_s}"
            async with site(address, tmp_path / "edge.db", **more) as one:
                await scenario(one)

        asyncio.run(main())

    return run


# --- shipping


def test_i4_i5_the_centre_serves_what_was_shipped_as_it_comes(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(counts, 200, 100)
        await one.shipped()
        reading = asyncio.create_task(read_all(one.centre, run_id))
        there = await one.centre.engine.observe(run_id)
        async with asyncio.timeout(20):
            while there.durable_offset < 100:
                await there.progress()
        assert not reading.done()
        open_gate("counts")
        assert await reading == list(range(200))
        await one.shipped()
        assert await one.centre.entries(run_id) == await one.edge.entries(run_id)
        here = await one.edge.engine.observe(run_id)
        assert (there.crc, there.record.status) == (here.crc, "completed")
        assert turns == list(range(200))

    play(scenario)


def test_the_centre_takes_no_run_of_an_edge_whose_lease_lives(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(counts, 20, 10)
        await one.shipped()
        said: dict[str, Any] = {}
        async with asyncio.timeout(20):  # the centre knows how far it may be behind
            while not said:
                there = await one.centre.engine.observe(run_id)
                said = await run_risk(one.centre.engine, there)
                await asyncio.sleep(0.01)
        assert said["unshipped"].keys() == {"entries", "bytes", "since", "at"}
        assert await one.centre.store.claim([run_id], 5) == []
        await one.centre.recovery.sweep()
        assert run_id not in one.centre.engine.runs
        open_gate("counts")
        await one.edge.ended(run_id)
        assert turns == list(range(20))

    play(scenario)


def test_while_the_centre_is_away_local_work_goes_on_and_the_lag_is_shown(play: Play) -> None:
    async def scenario(one: Site) -> None:
        engine = one.edge.engine

        async def well() -> bool:
            return node_risk(engine)["centre"] == "ok"

        await one.until(well)
        assert node_risk(engine)["unshipped"]["runs"] == 0
        await one.cut()
        ids = [(await one.edge.start(counts, 20)).id for _ in range(20)]
        for run_id in ids:
            assert await (await one.edge.run_of(run_id)).result() == 20
        lag = node_risk(engine)["unshipped"]
        assert (lag["runs"], lag["since"] is not None) == (20, True)
        of_one = (await run_risk(engine, await engine.observe(ids[0])))["unshipped"]
        record = await one.store.get(ids[0])
        assert record is not None
        assert of_one["entries"] == record.last_seq + 1
        assert 20 * of_one["entries"] == lag["entries"]
        shown = {name: value for name, _, _, value in numbers(engine)}
        assert shown["durable_edge_unshipped_entries"] == lag["entries"]

        async def noticed() -> bool:
            return node_risk(engine)["centre"] == "away"

        await one.until(noticed)
        one.mend()
        await one.shipped()
        for run_id in ids:
            assert await one.centre.entries(run_id) == await one.edge.entries(run_id)
        await one.until(well)
        assert node_risk(engine)["unshipped"] == {
            "runs": 0, "entries": 0, "bytes": 0, "since": None
        }  # fmt: skip
        assert sorted(turns) == sorted([*range(20)] * 20)

    play(scenario, ttl_s=SHORT_TTL_S)


def test_i14_beyond_the_bound_no_new_runs_are_taken(play: Play) -> None:
    async def scenario(one: Site) -> None:
        await one.cut()
        assert one.edge.engine.away is None
        await (await one.edge.start(counts, 50)).result()
        reason = one.edge.engine.away
        assert reason is not None
        assert "on this node's disk only" in reason
        one.mend()
        await one.shipped()
        assert one.edge.engine.away is None

    play(scenario, unshipped_max=2000)


def test_i2_a_killed_edge_goes_on_from_its_own_disk(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(counts, 20, 10)
        node = one.store.centre.node
        await one.kill_edge()
        await one.boot_edge()
        assert one.store.centre.node == node
        await one.driven_here(run_id)
        open_gate("counts")
        await one.edge.ended(run_id)
        await one.shipped()
        assert turns == list(range(20))
        record = await one.at_centre(run_id)
        assert record is not None
        assert (record.status, record.epoch) == ("completed", 1)
        assert await one.centre.entries(run_id) == await one.edge.entries(run_id)

    play(scenario)


def test_an_edge_that_starts_without_the_centre_waits_only_for_what_that_may_have(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints.limits.EDGE_OPEN_S", 0.1)

    async def scenario(one: Site) -> None:
        known = await one.begun(counts, 20, 10)
        await one.shipped()
        await one.cut()
        victim = await one.begun(counts, 20, 10)

        async def underway() -> bool:  # to a centre that does not answer
            return one.store._shipper.tracks[victim].known

        await one.until(underway)
        fresh = await one.begun(counts, 20, 10)
        await one.kill_edge()
        await one.boot_edge()
        await one.driven_here(fresh)
        assert not {known, victim} & set(one.edge.engine.runs)
        open_gate("counts")
        assert (await one.edge.ended(fresh)).status == "completed"
        one.mend()
        assert (await one.edge.ended_for_good(known)).status == "completed"
        assert (await one.edge.ended_for_good(victim)).status == "completed"
        assert sorted(turns) == sorted([*range(20)] * 3)
        await one.shipped()
        for run_id in (known, victim, fresh):
            assert await one.centre.entries(run_id) == await one.edge.entries(run_id)

    play(scenario)


def test_i9_cuts_on_the_way_lose_nothing_and_make_nothing_twice(play: Play) -> None:
    """Whether a batch that was cut off was written is found out before anything follows it."""

    async def scenario(one: Site) -> None:
        runs = [await one.edge.start(strolls, 150) for _ in range(5)]
        chance = random.Random(7)
        cuts = 0
        while any(run.id in one.edge.engine.runs for run in runs):
            await asyncio.sleep(chance.uniform(0.01, 0.08))
            one.way.cut()
            cuts += 1
        assert cuts > 10
        await one.shipped()
        for run in runs:
            record = await one.at_centre(run.id)
            assert record is not None
            assert (record.status, record.epoch) == ("completed", 1)
            assert await one.centre.entries(run.id) == await one.edge.entries(run.id)
        assert sorted(turns) == sorted([*range(150)] * 5)

    play(scenario)


@pytest.mark.timeout(120)
def test_i2_i6_kills_and_cuts_in_any_order(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease outlives all of it, so no run goes anywhere, and the centre has all in the end."""
    monkeypatch.setattr("durable_endpoints.limits.EDGE_OPEN_S", 0.2)

    async def scenario(one: Site) -> None:
        chance = random.Random(11)
        ids: list[str] = []
        for _ in range(8):
            ids += [(await one.edge.start(strolls, 60)).id for _ in range(2)]
            await one.edge.engine.runs[ids[-1]].durable(0)
            await one.edge.engine.runs[ids[-2]].durable(0)
            await asyncio.sleep(chance.uniform(0, 0.2))
            cut = chance.random() < 0.6
            if cut:
                await one.cut()
                await asyncio.sleep(chance.uniform(0, 0.2))
            if chance.random() < 0.6:
                await one.kill_edge()
                await one.boot_edge()
            if cut:
                one.mend()
        for run_id in ids:
            assert (await one.edge.ended_for_good(run_id)).status == "completed"
        await one.shipped()
        for run_id in ids:
            record = await one.at_centre(run_id)
            assert record is not None
            assert (record.status, record.epoch) == ("completed", 1)
            assert await one.centre.entries(run_id) == await one.edge.entries(run_id)
            assert await read_all(one.centre, run_id) == list(range(60))
        assert one.store._shipper.claims.tally.voided_runs == 0

    play(scenario)


def test_i20_a_damaged_frame_is_damaged_at_the_centre_too(play: Play) -> None:
    async def scenario(one: Site) -> None:
        await one.cut()
        run_id = await one.begun(counts, 20, 10)
        whole = await one.store.local.read(run_id, limit_bytes=10**9)
        spoilt = bytes([whole[-1].data[0] ^ 1]) + whole[-1].data[1:]
        spoil = "update frames set data = ? where id = (select max(id) from frames)"
        await one.store.local._write(lambda db: db.execute(spoil, (spoilt,)))
        one.mend()
        await one.shipped()
        assert (await one.centre.engine.observe(run_id)).damaged
        whole = await one.store.local.read(run_id, limit_bytes=10**9)
        there = await one.centre.store.read(run_id, limit_bytes=10**9)
        assert there[-1] == whole[-1]

    play(scenario)


# --- keys


def test_i7_a_key_of_the_centre_is_known_at_the_edge(play: Play) -> None:
    async def scenario(one: Site) -> None:
        there = one.centre.engine.begin("x", version="1", args=b"{}", payload=b"", key="k")
        await there.durable(0)

        async def known() -> bool:  # the centre is asked again if it was slow
            found = await one.store.find(None, "x", "k")
            return found is not None and found.run_id == there.id

        await one.until(known)
        await one.cut()

        async def away() -> bool:
            return await one.store.find(None, "x", "k") is None

        await one.until(away)

    play(scenario)


def test_i7_a_key_that_was_used_twice_meanwhile_stays_at_the_edge(play: Play) -> None:
    async def scenario(one: Site) -> None:
        await one.cut()
        here = one.edge.engine.begin("x", version="1", args=b"{}", payload=b"", key="k")
        await here.durable(0)
        there = one.centre.engine.begin("x", version="1", args=b"{}", payload=b"", key="k")
        await there.durable(0)
        one.mend()

        async def refused() -> bool:
            return one.store._shipper.claims.tally.refused_runs == 1

        await one.until(refused)
        found = await one.store.find(None, "x", "k")
        assert found is not None
        assert found.run_id == here.id
        assert await one.at_centre(here.id) is None
        await here.durable(here.append_event(17, b"more").offset)  # type: ignore[arg-type]
        assert not here.fenced

    play(scenario)


# --- deletion


def test_i21_what_is_deleted_at_the_edge_is_deleted_at_the_centre(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run = await one.edge.start(counts, 3)
        await run.result()
        await one.shipped()
        assert await one.edge.engine.delete(await one.edge.engine.observe(run.id))
        for store in (one.store, one.centre.store):
            assert await store.get(run.id) is None
            assert await store.was_deleted(run.id, None)
        second = await one.edge.start(counts, 3)
        await second.result()
        await one.shipped()
        await one.cut()
        PATIENCE_S.set(0.1)
        with pytest.raises(StoreAway):
            await one.store.delete(second.id)
        assert await one.store.get(second.id) is not None

    play(scenario)


# --- drain


def test_i22_a_drained_edge_hands_everything_over(play: Play) -> None:
    async def scenario(one: Site) -> None:
        running = await one.begun(counts, 20, 10)
        waiting = await one.begun(asks, "go")
        await one.edge.engine.drain(0)
        await one.driven_at_centre(running)
        await one.driven_at_centre(waiting)

        async def gone() -> bool:
            return not await one.here_only(running)

        await one.until(gone)
        open_gate("counts")
        assert await (await one.centre.run_of(running)).result() == 20
        there = await one.centre.engine.observe(waiting)
        await one.centre.engine.signal(there, "go", 7)
        assert await Run(one.centre.engine, there).result() == 7
        assert turns == list(range(20))
        await one.edge.engine.close()
        one.edge.store = one.new_store()
        await one.boot_edge()
        assert one.edge.engine.runs == {}
        assert await read_all(one.edge, running) == list(range(20))

    play(scenario)


def test_i22_an_edge_that_drains_without_the_centre_goes_on_itself_later(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints.limits.EDGE_LEAVE_S", 0.2)

    async def scenario(one: Site) -> None:
        run_id = await one.begun(counts, 20, 10)
        await one.shipped()
        await one.cut()
        await one.edge.engine.close()
        one.mend()
        one.edge.store = one.new_store()
        await one.boot_edge()
        await one.driven_here(run_id)
        open_gate("counts")
        await one.edge.ended(run_id)
        assert turns == list(range(20))

    play(scenario)


# --- waiting


def test_a_run_that_waits_for_long_goes_to_the_centre_and_is_asked_there(play: Play) -> None:
    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        run_id = await one.begun(asks, "go")

        async def gone() -> bool:
            return not await one.here_only(run_id)

        await one.until(gone)
        record = await one.at_centre(run_id)
        assert record is not None
        assert (record.status, record.epoch) == ("suspended", 1)
        here = await one.edge.engine.observe(run_id)
        receipt = await one.edge.engine.signal(here, "go", {"n": 1})
        assert receipt.outcome == "taken"
        assert await Run(one.edge.engine, here).result() == {"n": 1}
        record = await one.at_centre(run_id)
        assert record is not None
        assert (record.status, record.epoch) == ("completed", 2)
        assert await read_all(one.edge, run_id) == ["asked"]

    play(scenario, hand_over_after=0)


def test_i16_a_timer_that_is_far_away_is_the_centres_at_once(play: Play) -> None:
    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        soon, late = await one.begun(naps, 2), await one.begun(naps, 3600)

        async def gone() -> bool:
            return not await one.here_only(late)

        await one.until(gone)
        record = await one.at_centre(late)
        assert record is not None
        assert (record.status, record.wake_at_ms is not None) == ("suspended", True)
        assert await one.here_only(soon)
        async with asyncio.timeout(20):
            assert (await one.edge.ended_for_good(soon)).status == "completed"
        await one.shipped()
        record = await one.at_centre(soon)
        assert record is not None
        assert (record.status, record.epoch) == ("completed", 1)

    play(scenario)


def test_i16_a_timer_that_was_handed_over_fires_at_the_centre(play: Play) -> None:
    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        run_id = await one.begun(naps, 4)  # long beside the time until it is handed over
        async with asyncio.timeout(20):
            assert await (await one.edge.run_of(run_id)).result() == "awake"
        record = await one.at_centre(run_id)
        assert record is not None
        assert (record.status, record.epoch) == ("completed", 2)

    play(scenario, hand_over_after=0.1)


def test_a_run_that_was_handed_over_is_cancelled_from_the_edge(play: Play) -> None:
    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        run_id = await one.begun(asks, "go")

        async def gone() -> bool:
            return not await one.here_only(run_id)

        await one.until(gone)
        async with asyncio.timeout(20):
            await one.edge.engine.cancel(await one.edge.engine.observe(run_id))
        record = await one.at_centre(run_id)
        assert record is not None
        async with asyncio.timeout(20):
            while (await one.centre.run_of(run_id)).status != "cancelled":
                await asyncio.sleep(0.01)

    play(scenario, hand_over_after=0)


def test_without_a_node_at_the_centre_nobody_waits_for_ever(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable_endpoints.engine.remote.WAKE_S", 0.5)

    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        run_id = await one.begun(asks, "go")

        async def gone() -> bool:
            return not await one.here_only(run_id)

        one.centre.engine.leaving = True
        await one.until(gone)
        here = await one.edge.engine.observe(run_id)
        async with asyncio.timeout(20):
            with pytest.raises(Overloaded):
                await one.edge.engine.signal(here, "go", 1)
            with pytest.raises(Overloaded):
                await one.edge.engine.cancel(here)

    play(scenario, hand_over_after=0)


def test_a_dead_run_goes_to_the_centre_too(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run = await one.edge.start(gives_up)

        async def gone() -> bool:
            return not await one.here_only(run.id)

        await one.until(gone)
        record = await one.at_centre(run.id)
        assert record is not None
        assert record.status == "dead"
        for do in (one.edge.engine.cancel, one.edge.engine.retry):
            with pytest.raises(Overloaded, match="ask a central node"):
                await do(await one.edge.engine.observe(run.id))
        assert await one.centre.engine.retry(await one.centre.engine.observe(run.id))
        assert (await one.centre.ended(run.id)).status == "dead"

    play(scenario, hand_over_after=0)


def test_a_child_begins_while_the_centre_is_away(play: Play) -> None:
    async def scenario(one: Site) -> None:
        await one.cut()
        run = await one.edge.start(has_child)
        async with asyncio.timeout(20):
            assert await run.result() == 3
        one.mend()
        await one.shipped()
        rows = await one.centre.store.list(Query(parent=run.id))
        assert [row.status for row in rows] == ["completed"]

    play(scenario)


def test_a_run_that_rests_at_the_edge_is_asked_from_the_centre(play: Play) -> None:
    async def scenario(one: Site) -> None:
        one.edge.engine.waking.suspend_grace_s = 0
        run_id = await one.begun(asks, "go")

        async def rests() -> bool:
            record = await one.store.local.get(run_id)
            return record is not None and record.status == "suspended"

        await one.until(rests)
        await one.shipped()
        there = await one.centre.engine.observe(run_id)
        assert there.record.status == "running"
        receipt = await one.centre.engine.signal(there, "go", 7)
        assert receipt.outcome == "taken"
        assert await Run(one.centre.engine, there).result() == 7
        assert await one.here_only(run_id)

    play(scenario, hand_over_after=math.inf)


# --- a lost lease


def test_i6_an_edge_that_was_cut_off_is_fenced_and_its_tail_is_void(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(counts, 20, 10)
        reading = asyncio.create_task(read_all(one.edge, run_id))
        await one.shipped()
        await one.cut()
        here = one.edge.engine.runs[run_id]
        here.emit("here/1", b"data: 100\n\n")  # only the edge has it, and shows it
        await here.durable(here.seq - 1)
        await one.driven_at_centre(run_id)
        assert here.fenced is None
        one.mend()
        with pytest.raises(Fenced):
            await reading
        assert not await one.here_only(run_id)
        tally = one.store._shipper.claims.tally
        assert (tally.voided_runs, tally.voided_entries) == (1, 1)
        assert one.store._shipper.in_doubt(run_id)  # nothing of it begins here any more
        open_gate("counts")
        assert await (await one.centre.run_of(run_id)).result() == 20
        assert await read_all(one.edge, run_id) == list(range(20))
        assert (await one.edge.engine.observe(run_id)).crc == (
            await one.centre.engine.observe(run_id)
        ).crc

    play(scenario, ttl_s=SHORT_TTL_S)


def test_i3_an_effect_waits_while_the_centre_may_have_its_run(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(acts)
        one.centre.engine.leaving = True  # nobody there takes it up
        await one.shipped()
        await one.cut()

        async def lost() -> bool:
            return one.store._shipper.in_doubt(run_id)

        await one.until(lost)
        open_gate("acts")
        fresh = await one.begun(acts)  # of which the centre has never heard
        assert await (await one.edge.run_of(fresh)).result() == "acted"
        assert acted == [fresh]
        one.mend()
        assert await (await one.edge.run_of(run_id)).result() == "acted"
        assert acted == [fresh, run_id]
        one.centre.engine.leaving = False

    play(scenario, ttl_s=SHORT_TTL_S)


def test_i3_i6_an_effect_of_a_run_that_was_taken_over_acts_there_only(play: Play) -> None:
    async def scenario(one: Site) -> None:
        run_id = await one.begun(acts)
        await one.shipped()
        await one.cut()
        await one.driven_at_centre(run_id)
        open_gate("acts")
        assert await (await one.centre.run_of(run_id)).result() == "acted"
        one.mend()

        async def gone() -> bool:
            return not await one.here_only(run_id)

        await one.until(gone)
        assert acted == [run_id]
        assert await (await one.edge.run_of(run_id)).result() == "acted"

    play(scenario, ttl_s=SHORT_TTL_S)
