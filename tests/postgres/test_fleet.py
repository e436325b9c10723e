"""Three nodes under load: killed, paused, cut off, deployed; their database killed under them."""

from __future__ import annotations

import asyncio
import secrets
import signal
from pathlib import Path

import pytest

from tests.postgres.cluster import SLACK_S, TTL_S, Fleet, Node, trial
from tests.support.postgres import Cluster

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]
SWEEP_S = 1.0


def play(
    tmp_path: Path, cluster: Cluster, config: pytest.Config, trouble: object, times: int,
    **more: float,
) -> Fleet:  # fmt: skip
    """Run a trial, as often as --fleet-times says, and print what it has shown."""
    times *= config.getoption("--fleet-times", 1)
    seed = config.getoption("--fleet-seed", None) or secrets.randbelow(1_000_000)
    fleet = asyncio.run(trial(tmp_path, cluster, trouble, seed=seed, times=times, **more))  # type: ignore[arg-type]
    print(fleet.report, "takeovers", [round(took, 1) for took in fleet.takeovers_s])
    assert not fleet.report.violations, str(fleet.report)
    assert fleet.report.interrupted > 0, str(fleet.report)
    return fleet


def one_of(fleet: Fleet) -> Node:
    return fleet.chance.choice([node for node in fleet.nodes if node.server.running])


def test_i2_i5_i16_rolling_kills(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    async def kill(fleet: Fleet) -> None:
        node = one_of(fleet)
        name = await fleet.at_work(node)
        await node.kill()
        await asyncio.gather(fleet.taken_over(name), node.start())

    fleet = play(tmp_path, cluster, pytestconfig, kill, 3)
    assert max(fleet.takeovers_s) < TTL_S + SWEEP_S + SLACK_S


def test_i3_i6_a_node_that_is_paused_beyond_its_lease(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    async def pause(fleet: Fleet) -> None:
        node = one_of(fleet)
        name, since = await fleet.at_work(node), fleet.log_size()
        node.server.signal(signal.SIGSTOP)
        await asyncio.sleep(0.3)
        node.out = True
        await fleet.taken_over(name)
        node.server.signal(signal.SIGCONT)
        await node.well()
        node.out = False
        fleet.beside.append((node.server.pid, since, fleet.log_size()))

    fleet = play(tmp_path, cluster, pytestconfig, pause, 1)
    assert max(fleet.takeovers_s) < TTL_S + SWEEP_S + SLACK_S


def test_i9_the_database_dies(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    ways = ["kill", "immediate", "terminate", "longer than a lease"]

    async def die(fleet: Fleet) -> None:
        way = ways[fleet.report.kills % len(ways)]
        if way == "terminate":
            for _ in range(20):
                await fleet.query(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name like 'durable%' and query not like '%pg_notify%'"
                )
                await asyncio.sleep(0.02)
            return
        if way == "immediate":
            await asyncio.to_thread(cluster.stop, "immediate")
        else:
            await asyncio.to_thread(cluster.kill)
        longer = way.startswith("longer")
        await asyncio.sleep(TTL_S + 0.5 if longer else fleet.chance.uniform(0, 0.5))
        await asyncio.to_thread(cluster.start)

    play(tmp_path, cluster, pytestconfig, die, 4)


def test_i16_a_node_that_is_cut_off_from_the_database(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    async def cut_off(fleet: Fleet) -> None:
        node = one_of(fleet)
        name = await fleet.at_work(node)
        node.proxy.refusing = True
        node.proxy.stall()
        await fleet.taken_over(name)
        node.proxy.refusing = False
        node.proxy.cut()

    fleet = play(tmp_path, cluster, pytestconfig, cut_off, 1)
    assert max(fleet.takeovers_s) < TTL_S + SWEEP_S + SLACK_S


def test_i22_a_node_that_is_stopped_hands_over_at_once(
    tmp_path: Path, cluster: Cluster, pytestconfig: pytest.Config
) -> None:
    """Its lease would last for minutes."""

    async def stop(fleet: Fleet) -> None:
        node = one_of(fleet)
        name = await fleet.at_work(node)
        node.out = True
        assert await asyncio.to_thread(node.server.terminate) in (0, -signal.SIGTERM)
        await asyncio.gather(fleet.taken_over(name), node.start())

    fleet = play(tmp_path, cluster, pytestconfig, stop, 1, ttl_s=120)
    assert max(fleet.takeovers_s) < SLACK_S
