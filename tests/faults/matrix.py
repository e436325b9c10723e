"""The faults, what must hold under each, how to bring them about, and how often.

Every row runs some trials and returns what was wrong; `python -m tests.faults` runs them all, a
release with its own counts. What a machine cannot do is said, never left out in silence.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.crash.judge import Report
from tests.crash.kills import Life, kill_and_judge, point_lives, random_lives
from tests.crash.process import CrashServer
from tests.crash.workload import CUT_STREAMS, ENDPOINTS, Endpoint
from tests.faults import (
    test_clock,
    test_damage,
    test_disk_errors,
    test_power_cut,
    test_processes,
    test_resources,
    test_retention,
    test_soak,
)
from tests.faults.commands import Done, Trials, mutants, tests
from tests.faults.disk import FailingDisk, ext4, tmpfs, why_no_mounts, why_no_shims
from tests.simulation.sweep import Orders, met, sweep, unmet

LIVES_A_STORE: Final = 20
SYNCS: Final = 60  # the n-th sync of a life, n up to this

Makes = Callable[[CrashServer, random.Random, int], tuple[str, Life]]


def always() -> str:
    """Return why a row cannot run here: "" for those that always can."""
    return ""


@dataclass(frozen=True)
class Row:
    """One line of the matrix."""

    name: str
    what: str
    holds: str
    trials: Trials
    often: int  # in every run of the suite, roughly
    release: int
    why_not: Callable[[], str] = always


@contextmanager
def plain(place: Path) -> Iterator[CrashServer]:
    """Give a server on the machine's own disk."""
    yield CrashServer(place)


def everything(report: Report) -> list[str]:
    """Return all that did not hold, and what was to end lives and did not come up."""
    return [*map(str, report.violations), *missed(report)]


def missed(report: Report) -> list[str]:
    """Return what did not come up: lives that lack it say nothing of it."""
    return [f"{name} did not come up" for name in report.missed]


def told_or_not(report: Report) -> list[str]:
    """Return what did not hold, but for runs that no client was told of: refused, and begun."""
    told = [found for found in report.violations if "no client was told" not in found.detail]
    return [*map(str, told), *missed(report)]


def lives(
    make: Makes, on: Callable[[Path], object] = plain, *, clients: int = 24,
    endpoints: Sequence[Endpoint] = ENDPOINTS, wrong: Callable[[Report], list[str]] = everything,
    then: Makes | None = None,
) -> Trials:  # fmt: skip
    """Return trials that are lives of a server under load, some of them over one store.

    `wrong` says what of a report did not hold; `then` is the last life of each store.
    """

    def run(place: Path, trials: int, seed: int, done: Done) -> list[str]:
        found: list[str] = []
        for begin in range(0, trials, LIVES_A_STORE):
            chance = random.Random(f"{seed}/{begin}")
            directory = place / f"store{begin}"
            directory.mkdir(parents=True)
            with on(directory) as server:  # type: ignore[attr-defined]
                some = [make(server, chance, begin + number)
                        for number in range(min(LIVES_A_STORE, trials - begin))]  # fmt: skip
                some += [then(server, chance, begin)] if then is not None else []
                report = asyncio.run(
                    kill_and_judge(directory, seed + begin, some, clients=clients, server=server,
                                   endpoints=endpoints)
                )  # fmt: skip
            found += wrong(report)
            done(min(begin + LIVES_A_STORE, trials))
        return found

    return run


# --- how servers end


def _random(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return random_lives(chance.randrange(1 << 30), 1)[0]


def _cut_stream(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return point_lives([f"item.done:{1 + number % 400}"])[0]


def _at_sync(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    faults = FailingDisk(server.directory)
    return f"sync {number}", test_power_cut.kill_at_sync(faults, 1 + number % SYNCS)


def _failing(plan: str) -> Makes:
    def make(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
        disk = FailingDisk(server.directory)
        how = plan.format(n=1 + number // 2 % SYNCS, once=" once" if number % 2 else "")
        left = test_disk_errors.LEFT
        return how, test_disk_errors.life_until(disk, how, left, chance)

    return make


def _pause(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return f"pause {number}", test_processes.pause(chance)


def _drain(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return f"drain {number}", test_processes.drain(chance)


def _jump(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return f"jump {number}", test_clock.jump(server.directory / "offset", chance)


def _settle(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return "settle", test_clock.settle(server.directory / "offset")


def _cut(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return f"cut {number}", test_power_cut.cut(server.disk, chance)  # type: ignore[attr-defined]


def _sync_then_cut(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return _at_sync(server, chance, number) if number % 2 == 0 else _cut(server, chance, number)


def _starved(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return test_resources.starved(chance, number)


def _full(server: CrashServer, chance: random.Random, number: int) -> tuple[str, Life]:
    return "full", test_disk_errors.full(server.store.parent / "filler")


# --- what servers stand on


@contextmanager
def shimmed(place: Path) -> Iterator[CrashServer]:
    """Give a server whose disk can be told to fail."""
    yield CrashServer(place, env=FailingDisk(place).env)


@contextmanager
def clocked(place: Path) -> Iterator[CrashServer]:
    """Give a server whose wall clock can be moved."""
    yield CrashServer(place, env=test_clock.environment(place / "offset"))


@contextmanager
def cuttable(place: Path) -> Iterator[CrashServer]:
    """Give a server on an ext4 of its own whose power can be cut."""
    shims = FailingDisk(place).env if not why_no_shims() else {}
    with ext4(place / "disk", place / "image", 64) as disk:
        server = CrashServer(place, store=disk.mount_point / "durable.db", env=shims)
        server.disk = disk  # type: ignore[attr-defined]
        yield server


@contextmanager
def small(place: Path) -> Iterator[CrashServer]:
    """Give a server on a small file system."""
    with tmpfs(place / "disk", "48M") as disk:
        yield CrashServer(place, store=disk.mount_point / "durable.db", env={"LOCK_WAIT": "1"})


# --- trials of other kinds


def named_points(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Go through the groups of crash points, each over a store of its own."""
    from tests.crash.test_crash_points import GROUPS

    wrong: list[str] = []
    over = 0
    while over < trials:
        for name, group in GROUPS.items():
            report = asyncio.run(
                kill_and_judge(
                    place / f"{name}{over}", seed + over, point_lives(group.points),
                    clients=group.clients, endpoints=group.endpoints,
                )
            )  # fmt: skip
            wrong += everything(report)
            over += len(group.points)
            done(min(over, trials))
            if over >= trials:
                break
    return wrong


def simulated(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Live schedules, on all cores."""
    orders = Orders(seed, trials, jobs=os.cpu_count() or 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "0")  # as `--seed` has it: else it replays another schedule
        tally = sweep(orders, lambda t, _: done(t.schedules))
    print(met(tally))
    wrong = [f"--seed {one}: {found[0]}" for one, found in tally.failures.items()]
    return wrong + [f"no schedule met: {name}" for name in unmet(tally, orders)]


def crash_states(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Judge what disks could hold after power cuts."""
    from tests.faults.crash_states import judge, read, record
    from tests.faults.recording import states

    wrong: list[str] = []
    over = 0
    while over < trials:
        chance = random.Random(seed)
        size = chance.choice((40, 600, 6000))
        recorder, model = record(place / f"made{seed}", seed, batches=chance.randint(2, 16),
                                 size=size)  # fmt: skip
        for state in states(recorder, chance, 4000, whole=10):
            verdict = judge(state, model, place / "cut", read)
            if verdict is not None:
                wrong.append(f"seed {seed}, step {state.at}: {verdict}")
            over += 1
        done(min(over, trials))
        seed += 1
    return wrong


def why_no_apsw() -> str:
    """Say why the recording disk cannot be had."""
    try:
        importlib.import_module("apsw")
    except ImportError:
        return "apsw is not installed"
    return ""


def flips(place: Path, trials: int, seed: int, done: Done) -> list[str]:
    """Flip bits in a store, and ask for everything."""
    base = test_damage.make_base(place / "base")
    wrong = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        crashy = importlib.import_module("tests.apps.crashy")
        for number in range(trials):
            where = ("anywhere", "page heads")[number % 2]
            _, found = test_damage.flip_and_look(
                seed + number, where, base, crashy, place / str(number)
            )
            wrong += [found] if found else []
            done(number + 1)
    return wrong


def why_no_postgres() -> str:
    """Say why there is no PostgreSQL to break."""
    from tests.support.postgres import programs

    return "" if programs() is not None else "there is no PostgreSQL server's program"


def why_no_proc() -> str:
    """Say why processes cannot be looked into."""
    return "" if sys.platform == "linux" else "prlimit and /proc are Linux's"


ROWS: Final = (
    Row("F1", "simulated crashes, pauses, reconnects, waits, signals, cancels", "I1-I17",
        simulated, 900, 200_000),
    Row("F2", "any unsynced write lost, torn or reordered", "I1 I7 I8 I20",
        crash_states, 5_000, 200_000, why_no_apsw),
    Row("F3", "kill -9 at each named point", "all", named_points, 65, 6_600),
    Row("F3b", "kill -9 in the middle of signals, cancels, retries, deletes", "all",
        tests("tests/crash/test_crash_scripts.py"), 1, 50),
    Row("F4", "kill -9 at random under load", "all", lives(_random, clients=32), 40, 10_000),
    Row("F5", "kill -9 at the n-th sync", "I1 I10", lives(_at_sync, shimmed), 8, 1_200,
        why_no_shims),
    Row("F6", "power cut under load", "I1 I2 I3 I7 I8", lives(_cut, cuttable), 6, 3_000,
        why_no_mounts),
    Row("F7", "kill at a sync, restart, clients read, power cut", "I10",
        lives(_sync_then_cut, cuttable), 6, 500, lambda: why_no_mounts() or why_no_shims()),
    Row("F8", "a failing fsync, the n-th, once and for ever", "I9",
        lives(_failing("sync eio {n}{once}"), shimmed), 4, 1_200, why_no_shims),
    Row("F9", "a failing write", "I9 I20", lives(_failing("write eio {n}{once}"), shimmed), 4,
        2_000, why_no_shims),
    Row("F10", "a full disk that fsync notices, the n-th", "I9",
        lives(_failing("sync enospc {n}{once}"), shimmed), 2, 100, why_no_shims),
    Row("F11", "a full disk, and room again", "no answer lost; refuses, then goes on",
        lives(_full, small, clients=16, wrong=told_or_not), 2, 500, why_no_mounts),
    Row("F12", "a slow disk", "I14; commits, not steps",
        tests("tests/server/test_slow_disk.py"), 1, 20, why_no_shims),
    Row("F13", "a flipped bit", "I20", flips, 120, 5_000),
    Row("F14", "a second process, a fork, --workers 2", "I6",
        tests("tests/faults/test_processes.py", "-k", "refused or successor or forked"), 1, 50),
    Row("F15", "PostgreSQL: backends and servers killed, cut off in COMMIT", "I1 I2 I6",
        tests("tests/postgres/test_commits.py"), 1, 50, why_no_postgres),
    Row("F16", "a power cut under PostgreSQL, and an older copy of its database (F17)", "I1 I4 I7",
        tests("tests/postgres/test_lost.py"), 1, 50,
        lambda: why_no_postgres() or why_no_mounts()),
    Row("F18", "nodes stopped, killed, fenced; clients that change nodes", "I4 I5 I6",
        tests("tests/postgres/test_fleet.py", seeds="--fleet-seed"), 1, 200, why_no_postgres),
    Row("F19", "a stopped process goes on", "I1 I14", lives(_pause), 3, 500),
    Row("F21", "readers that leave and come back", "I4 I5",
        tests("tests/surface/test_readers.py", "tests/surface/test_resume.py"), 1, 50),
    Row("F22", "readers that take nothing", "I23: memory; they are let go",
        tests("tests/surface/test_stalled.py"), 1, 20, why_no_proc),
    Row("F25", "a crash after every item of a stream, every policy", "I5",
        lives(_cut_stream, endpoints=CUT_STREAMS), 9, 2_000),
    Row("F26", "kill -9 around effects, waits, signals, cancels, undoing (F27, F28)", "I3 I15 I16",
        tests("tests/crash/waiting"), 1, 50),
    Row("F30", "wall clocks that jump", "I16",
        lives(_jump, clocked, then=_settle), 4, 500, why_no_shims),
    Row("F31", "runs that take the process with them", "I17",
        tests("tests/faults/test_poison.py"), 1, 50),
    Row("F32", "SIGTERM at random, twice, then SIGKILL", "I22", lives(_drain), 8, 2_000),
    Row("F33", "a store of an earlier release", "I11",
        tests("tests/faults/test_golden.py"), 1, 20),
    Row("F34", "runs deleted, and their file vacuumed, under readers; a kill in between", "I5 I21",
        test_retention.trials, 3, 1_000),
    Row("F35", "descriptors and memory used up", "no wrong answer",
        lives(_starved, endpoints=test_resources.AT_WORK, wrong=test_resources.wrong), 6, 200,
        why_no_proc),
    Row("F36", "random sequences of calls against a model", "all",
        tests("tests/engine/test_race_machine.py"), 1, 100),
    Row("F37", "a soak: lives of 18 s, stopped now and then", "all; memory, descriptors, log",
        test_soak.lives, 1, 1_000),
    Row("F38", "every mutant is caught", "the suite", mutants, 1, 1),
)  # fmt: skip
