"""Engines, each broken in one place, and the test that has to notice.

M1 to M16 break a promise of the design each; from M17 on they bring back what was once wrong.

`python -m tests.crash.mutants [M1 M7 ...]` copies the package and its tests, breaks one place,
runs the tests that are named for it, and prints a table. A mutant that survives, or whose place
is no longer there, is a failure: the tests (or this list) have to be mended.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "durable_endpoints"
TIMEOUT_S: Final = 240
_TESTS_FAILED: Final = 1  # pytest's exit codes
_NO_TESTS_RAN: Final = 5


class Patch(NamedTuple):
    """One place of the source. `old` is there exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken engine, and who is to catch it: the first of these tests that runs here."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    tests: tuple[str, ...]


GUARDS: Final = "tests/crash/test_guards.py"
REPLAY: Final = "tests/engine/test_replay.py"
DISK: Final = "tests/faults/test_disk_errors.py"
POINTS: Final = "tests/crash/test_crash_points.py"
SIMULATION: Final = "tests/simulation/test_simulation.py::test_no_schedule_breaks_a_promise"

MUTANTS: Final = (
    Mutant(
        "M1", "publishes at append, not at the commit (I1)",
        (Patch("engine/run.py", "        self.recent.add(event)\n        return event\n",
               "        self.recent.add(event)\n        self.durable_offset = self.offset\n"
               "        self.wake()\n        return event\n"),),
        (f"{GUARDS}::test_i1_nothing_leaves_before_it_is_durable",),
    ),
    Mutant(
        "M2", "synchronous=NORMAL: commits that no sync follows (I1)",
        (Patch("stores/sqlite.py", "pragma synchronous = full", "pragma synchronous = normal"),
         Patch("stores/sqlite.py", "synchronous != 2", "synchronous != 1")),
        ("tests/server/test_slow_disk.py",),
    ),
    Mutant(
        "M3", "an effect does not wait for its intent to be durable (I3)",
        (Patch("engine/attempts.py", "            await run.durable(seq)\n        finally:\n",
               "            await asyncio.sleep(0)\n        finally:\n"),),
        (SIMULATION,),
    ),
    Mutant(
        "M4", "takes a failed write for a done one (I9)",
        (Patch("stores/sqlite.py",
               '            self.failed = f"a write to {self.path} failed with unknown outcome: '
               '{error}"\n', "            return frozenset()  # type: ignore[return-value]\n"),),
        (f"{GUARDS}::test_a_failed_write_is_never_followed_by_another",
         f"{DISK}::test_a_failed_write_or_sync_ends_the_process_and_nothing_is_lost"),
    ),
    Mutant(
        "M5", "does not look at the epoch when it commits (I6)",
        (Patch("stores/statements.py",
               '" where run_id = ?1 and epoch = ?7 and last_seq = ?2 - 1"',
               '" where run_id = ?1 and last_seq = ?2 - 1"'),
         Patch("stores/statements.py",
               '" where run_id = ?1 and epoch = ?2 and last_seq = ?8"',
               '" where run_id = ?1 and last_seq = ?8 and ?2 > 0"')),
        ("tests/conformance/test_store.py",),
    ),
    Mutant(
        "M6", "one counter of calls for all tasks of a run (I12)",
        (Patch("engine/scope.py", '        scope = Scope(self.run, f"{self.path}{name}.{number}/")',
               "        return self\n        scope = Scope(self.run, self.path)"),),
        (f"{GUARDS}::test_i12_identity_does_not_depend_on_scheduling",),
    ),
    Mutant(
        "M7", "starts without making durable what a kill left (I10)",
        (Patch("stores/sqlite.py", "if not self._owner.was_clean:", "if False:"),
         Patch("stores/sqlite.py", '    db.execute("pragma wal_checkpoint(truncate)")\n', "")),
        (f"{DISK}::test_a_start_syncs_what_a_kill_left",),
    ),
    Mutant(
        "M8", "an effect's key depends on the attempt (I3)",
        (Patch("engine/attempts.py", 'f"{run_id}/{ident}/{name}".encode()',
               'f"{run_id}/{ident}/{name}/{__import__(\'os\').urandom(4)}".encode()'),),
        (SIMULATION,),
    ),
    Mutant(
        "M9", "event ids from the clock (I4)",
        (Patch("asgi/tail.py",
               "with_id(event.payload, self._run_id, event.offset, event.crc)",
               "with_id(event.payload, self._run_id, event.offset, "
               "int(self._loop.time() * 1e9) & 0xFFFFFFFF)"),),
        (f"{GUARDS}::test_i4_every_reader_gets_the_same_ids",),
    ),
    Mutant(
        "M10", "`str.splitlines` cuts event data",
        (Patch("asgi/sse.py", 'for line in text.split("\\n")', "for line in text.splitlines()"),),
        (f"{GUARDS}::test_only_line_ends_end_lines",),
    ),
    Mutant(
        "M11", "replays completions as they are asked for, not in journal order (I12)",
        (Patch("engine/replay.py", "        while not journal.is_turn(delivery):",
               "        while False:"),),
        (f"{REPLAY}::test_i12_concurrent_steps_replay_in_the_order_in_which_they_completed",
         f"{REPLAY}::test_i2_i12_any_shape_of_concurrency_survives_crashes_at_any_commit"),
    ),
    Mutant(
        "M12", "a reader that leaves cancels the run",
        (Patch("asgi/exchange.py", "            await self._capture.complete()\n",
               "            await self._receive()\n"),),
        ("tests/surface/test_lifecycle.py::test_a_reader_that_leaves_does_not_cancel",),
    ),
    Mutant(
        "M13", "attempts are not counted before the code runs (I17)",
        (Patch("stores/statements.py", "attempts = attempts + 1", "attempts = attempts"),),
        ("tests/conformance/test_store.py", "tests/faults/test_poison.py"),
    ),
    Mutant(
        "M14", "a second connection that can write",
        (Patch("stores/sqlite.py", "?mode=ro", "?mode=rwc"),),
        (f"{GUARDS}::test_only_one_connection_can_write",),
    ),
    Mutant(
        "M15", "one bad payload poisons the batch (I20)",
        (Patch("engine/run.py", "        self.error = error and plain(error)\n        seq =",
               "        self.error = error\n        seq ="),),
        (f"{GUARDS}::test_one_bad_payload_does_not_poison_the_batch",),
    ),
    Mutant(
        "M16", "cursors are what `int()` takes for a number",
        (Patch("asgi/cursor.py", r're.compile(r"\d{1,9}", re.ASCII)',
               r're.compile(r"[ +_\d]{1,12}")'),),
        ("tests/surface/test_resume.py::test_a_malformed_cursor_is_a_400",),
    ),
    Mutant(
        "M17", "shows a `hold` stream before all of it is there (I5)",
        (Patch("engine/streams.py", 'if spec.on_interrupt == "hold":', "if False:"),),
        (f"{REPLAY}::test_a_half_streamed_step_follows_its_policy",
         f"{POINTS}::test_crash_points[interrupted]"),
    ),
    Mutant(
        "M18", "chance depends on the attempt (I11)",
        (Patch("engine/context.py", '_random.Random(f"{scope.run.id}/{scope.path}")',
               '_random.Random(f"{scope.run.id}/{scope.path}/{scope.run.record.epoch}")'),),
        (f"{GUARDS}::test_i11_chance_is_the_same_at_every_attempt",),
    ),
    Mutant(
        "M19", "tries a failed write once more (I9)",
        (Patch("stores/sqlite.py",
               "            return await self._writer.run(work)\n        except",
               "            try:\n                return await self._writer.run(work)\n"
               "            except sqlite3.Error:\n"
               "                return await self._writer.run(work)\n        except"),),
        (f"{GUARDS}::test_a_failed_write_is_never_followed_by_another",
         f"{DISK}::test_a_failed_write_or_sync_ends_the_process_and_nothing_is_lost"),
    ),
    Mutant(
        "M20", "a cancel is answered before it is durable (I15)",
        (Patch("engine/steering.py", "    await run.durable(run.seq - 1)  # also", "    # also"),),
        (SIMULATION,),
    ),
    Mutant(
        "M21", "timers fire early (I16)",
        (Patch("engine/waits.py", "wait.until_ms > now_ms or", "wait.until_ms > now_ms + 99 or"),
         Patch("engine/waits.py", "(min(dues) - log.clock", "(min(dues) - 50 - log.clock")),
        (SIMULATION,),
    ),
    Mutant(
        "M22", "one signal sent twice is two (I16)",
        (Patch("engine/waits.py", "        self._known[signal.name, signal.signal_id] = seq\n",
               ""),),
        (SIMULATION,),
    ),
    Mutant(
        "M23", "a recorded completion of a cancelled call is never taken (I12)",
        (Patch("engine/replay.py", "        finally:\n            # Also when the caller",
               "        except ZeroDivisionError:\n            pass\n"
               "        else:\n            #"),),
        (SIMULATION,),
    ),
    Mutant(
        "M24", "compensations run first things first",
        (Patch("engine/undo.py", "in reversed(list(run.undo))", "in list(run.undo)"),),
        (SIMULATION,),
    ),
    Mutant(
        "M25", "a crash forgets how often a step was tried (I17)",
        (Patch("engine/attempts.py", "self._failed, self._began_ms = len(failed),",
               "self._failed, self._began_ms = 0,"),),
        (SIMULATION,),
    ),
    Mutant(
        "M26", "completions reach concurrent tasks with no distance between (I12)",
        (Patch("engine/pace.py", "TURNS_APART: Final = 6", "TURNS_APART: Final = 0"),),
        (SIMULATION,),
    ),
    Mutant(
        "M27", "other numbers for kinds that are on disk",
        (Patch("records.py", "    FIRED = 10 ", "    FIRED = 91 "),),
        ("tests/faults/test_golden.py",),
    ),
)  # fmt: skip


class Verdict(NamedTuple):
    """What became of a mutant."""

    word: str  # caught, SURVIVED, or why it could not be tried
    by: str
    took_s: float


def copy_tree(place: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", ".work", ".hypothesis")
    for name in (PACKAGE, "tests", "examples", "bench"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place / name)


def apply(place: Path, mutant: Mutant) -> str | None:
    """Break the copy; returns what is wrong with the patches."""
    for patch in mutant.patches:
        path = place / PACKAGE / patch.file
        source = path.read_text()
        if source.count(patch.old) != 1:
            return f"{patch.file} holds {patch.old.strip()!r} {source.count(patch.old)} times"
        path.write_text(source.replace(patch.old, patch.new))
    return None


def run_tests(place: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy until one fails; return pytest's exit code and what it said."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
               "--timeout", str(TIMEOUT_S // 2), *tests]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _TESTS_FAILED, f"FAILED {tests[0]} - no end within {TIMEOUT_S} s"
    return done.returncode, done.stdout + done.stderr


def try_mutant(mutant: Mutant) -> Verdict:
    """Break a copy of the package and see whether a test notices."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        place = Path(name)
        copy_tree(place)
        wrong = apply(place, mutant)
        if wrong is not None:
            return Verdict("DOES NOT APPLY", wrong, 0.0)
        code, said = run_tests(place, mutant.tests)
    took_s = time.monotonic() - began
    if code == _TESTS_FAILED:
        failed = [line for line in said.splitlines() if line.startswith("FAILED tests")]
        if not failed:
            return Verdict("BROKEN TEST", "\n".join(said.splitlines()[-5:]), took_s)
        return Verdict("caught", failed[0].split(" - ")[0].removeprefix("FAILED "), took_s)
    if code == 0 and " passed" not in said:
        return Verdict("not tried", "its tests are skipped on this machine", took_s)
    if code == 0:
        return Verdict("SURVIVED", ", ".join(mutant.tests), took_s)
    return Verdict("BROKEN TEST", "\n".join(said.splitlines()[-5:]), took_s)


def check_whole(mutants: tuple[Mutant, ...]) -> str | None:
    """Run all their tests on the engine as it is; returns what failed."""
    tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="whole-") as name:
        copy_tree(Path(name))
        code, said = run_tests(Path(name), tests)
    return None if code in (0, _NO_TESTS_RAN) else "\n".join(said.splitlines()[-15:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="M1", help="which; all if none is given")
    parser.add_argument("--skip-whole", action="store_true", help="do not try the whole engine")
    options = parser.parse_args()
    chosen = tuple(m for m in MUTANTS if not options.names or m.name in options.names)
    if not options.skip_whole:
        print("the engine as it is: ", end="", flush=True)
        failed = check_whole(chosen)
        print("passes" if failed is None else f"FAILS\n{failed}", flush=True)
        if failed is not None:
            return 1
    survived = 0
    for mutant in chosen:
        verdict = try_mutant(mutant)
        survived += verdict.word not in ("caught", "not tried")
        print(f"{mutant.name:<4} {verdict.word:<14} {verdict.took_s:5.1f} s  {mutant.what:<66} "
              f"{verdict.by}", flush=True)  # fmt: skip
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught or not tried here")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
