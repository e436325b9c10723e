"""The broken engines: what is broken in each, and the cheapest test that has to notice.

M1 to M16 break a promise of the design each, M17 to M27 and from M44 on they bring back what was
once wrong, and from M28 to M43 there is one for every other invariant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple


class Patch(NamedTuple):
    """One place of the source. `old` is there exactly once."""

    file: str
    old: str
    new: str


class Schedules(NamedTuple):
    """Simulated schedules, lived until one of them breaks a promise."""

    first: int
    count: int

    def __str__(self) -> str:
        return f"schedules {self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True)
class Mutant:
    """A broken engine, and who is to catch it: the first of these tests that does."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    tests: tuple[str | Schedules, ...]
    hangs: bool = False  # its tests find no end: that is how they notice


GUARDS: Final = "tests/crash/test_guards.py"
GUARDS_HTTP: Final = "tests/crash/test_guards_http.py"
DEADLINES: Final = "tests/engine/test_deadlines.py"
REPLAY: Final = "tests/engine/test_replay.py"
WAITS: Final = "tests/engine/test_waits.py"
CUT_SHORT: Final = "tests/engine/test_cut_short.py"
TOLD: Final = "tests/engine/test_told.py"
FOUND: Final = "tests/engine/test_found.py"
DISK: Final = "tests/faults/test_disk_errors.py"
POINTS: Final = "tests/crash/test_crash_points.py"
SIMULATION: Final = Schedules(0, 900)
CONFORMANCE: Final = "tests/conformance/test_store.py"

MUTANTS: Final = (
    Mutant(
        "M1", "publishes at append, not at the commit (I1)",
        (Patch("engine/run.py", "        self.recent.add(event)\n        return event\n",
               "        self.recent.add(event)\n        self.durable_offset = self.offset\n"
               "        self.wake()\n        return event\n"),),
        (f"{GUARDS_HTTP}::test_i1_nothing_leaves_before_it_is_durable",),
    ),
    Mutant(
        "M2", "synchronous=NORMAL: commits that no sync follows (I1)",
        (Patch("stores/sqlite.py", "pragma synchronous = full", "pragma synchronous = normal"),
         Patch("stores/sqlite.py", "synchronous != 2", "synchronous != 1")),
        ("tests/server/test_slow_disk.py",),
    ),
    Mutant(
        "M3", "an effect does not wait for its intent to be durable (I3)",
        (Patch("engine/attempts.py", "            await run.durable(seq)\n",
               "            await asyncio.sleep(0)\n"),),
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
        (Patch("engine/scope.py",
               '        scope = Scope(self.run, f"{self.path}{name}.{number}/", self)',
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
        (f"{GUARDS_HTTP}::test_i4_every_reader_gets_the_same_ids",),
    ),
    Mutant(
        "M10", "`str.splitlines` cuts event data",
        (Patch("asgi/sse.py", 'for line in text.split("\\n")', "for line in text.splitlines()"),),
        (f"{GUARDS_HTTP}::test_only_line_ends_end_lines",),
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
        (Patch("stores/statements.py", "attempts = attempts + ", "attempts = attempts + 0 * "),),
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
        (Patch("engine/undo.py", "undo.seq, reverse=True)", "undo.seq)"),),
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
    Mutant(
        "M28", "raises the watermark before the commit (I1)",
        (Patch("engine/log.py", "                fenced = await self.store.append(frames)\n",
               "                for run, frame in zip(runs, frames, strict=True):\n"
               "                    run.committed(frame)\n"
               "                fenced = await self.store.append(frames)\n"),),
        (f"{GUARDS_HTTP}::test_i1_nothing_leaves_before_it_is_durable",),
    ),
    Mutant(
        "M29", "no gate: readers get what is appended (I1)",
        (Patch("engine/run.py", "self.recent.between(offset, self.durable_offset)",
               "self.recent.between(offset, self.offset)"),),
        (SIMULATION,),
    ),
    Mutant(
        "M30", "PostgreSQL does not look at the epoch when it commits (I6)",
        (Patch("stores/sql/postgres/append.sql",
               "on locked.run_id = frame.run_id and locked.epoch = frame.epoch",
               "on locked.run_id = frame.run_id"),),
        (f"{CONFORMANCE}::test_i6_epoch_and_last_seq_are_checked_where_it_inserts[postgres]",),
    ),
    Mutant(
        "M31", "other arguments replay what was recorded for these (I11)",
        (Patch("journal.py", "if check and call.check and check != call.check:", "if False:"),),
        (f"{REPLAY}::test_i11_other_arguments_park_the_run",),
    ),
    Mutant(
        "M32", "other bytes of a response replay as the recorded ones (I11)",
        (Patch("journal.py", "            if rest[:size] != data[:size]:\n",
               "            if False:\n"),),
        (f"{GUARDS}::test_i11_another_body_than_the_recorded_one_is_a_divergence",),
    ),
    Mutant(
        "M33", "does not look at the checksum of a frame (I20)",
        (Patch("frames.py", "    if crc32(memoryview(data)[4:]) != checksum:\n",
               "    if checksum < 0:\n"),),
        ("tests/unit/test_frames.py",),
    ),
    Mutant(
        "M34", "recovers a run that makes no progress for ever (I17)",
        (Patch("engine/recovery.py", "if run.record.attempts > RECOVERIES_MAX:",
               "if run.record.attempts > 1_000_000:"),),
        (f"{REPLAY}::test_i17_a_run_that_makes_no_progress_dies_and_its_neighbour_does_not",),
    ),
    Mutant(
        "M35", "writes secrets down (I19)",
        (Patch("redact.py", "    return _SECRET.search(name) is not None\n",
               "    return not name\n"),),
        ("tests/unit/test_redact.py",),
    ),
    Mutant(
        "M36", "shows a run to any principal (I18)",
        (Patch("engine/engine.py", "run.record.principal != principal or run.durable_seq < 0",
               "run.durable_seq < 0"),),
        ("tests/surface/test_privacy.py::test_another_principals_run_is_as_unknown_as_none",),
    ),
    Mutant(
        "M37", "appends behind the end of a run (I15)",
        (Patch("engine/run.py", "if self.fenced is not None or self.terminal_seq >= 0:",
               "if self.fenced is not None:"),),
        (SIMULATION,),
    ),
    Mutant(
        "M38", "the unpersisted window has no bound (I14)",
        (Patch("engine/log.py", "        return entries > 0 and (\n",
               "        return entries < 0 and (\n"),),
        (f"{GUARDS}::test_i14_the_window_of_what_is_not_durable_is_bounded",),
    ),
    Mutant(
        "M39", "a deleted run is forgotten, not known as deleted (I21)",
        (Patch("stores/statements.py",
               '        db.execute("insert into deleted (run_id, principal) values (?, ?)", '
               "(run_id, row[1]))\n", ""),),
        (f"{CONFORMANCE}::test_i21_a_deleted_run_is_gone_and_known_as_deleted",),
    ),
    Mutant(
        "M40", "begins an effect without its lease (I3)",
        (Patch("engine/attempts.py", "        if not run.log.host.may_act():\n",
               "        if False:\n"),),
        (f"{GUARDS}::test_i3_no_effect_begins_once_the_lease_is_over",),
    ),
    Mutant(
        "M41", "tells of a run before it is durable (I7)",
        (Patch("asgi/replies.py", "    await run.durable(0)\n", ""),),
        (f"{GUARDS_HTTP}::test_i1_nothing_leaves_before_it_is_durable",),
    ),
    Mutant(
        "M42", "a stream that is cut short ends as if it were whole (I5)",
        (Patch("asgi/tail.py",
               '        elif not run.response_ended and run.record.status != "cancelled":\n',
               "        elif False:\n"),),
        (f"{GUARDS_HTTP}::test_i5_a_stream_that_is_cut_short_does_not_end_cleanly",),
    ),
    Mutant(
        "M43", "puts labels on the run again at each replay (I2)",
        (Patch("engine/labels.py", "return None if key in self._recorded else key",
               "return key"),),
        (SIMULATION,),
    ),
    Mutant(
        "M44", "a timeout cuts a run that is on its way to its endpoint (I16)",
        (Patch("engine/deadline.py", "or not run.caught_up or", "or run.replay is not None or"),),
        (f"{DEADLINES}::test_a_timeout_that_is_over_finds_a_woken_run_wherever_it_is",),
    ),
    Mutant(
        "M45", "coming to the same wait again counts as progress (I17)",
        (Patch("engine/run.py", "self._progress |= not self.waits.interrupted",
               "self._progress = True"),),
        (f"{WAITS}::test_i17_coming_to_the_same_wait_after_a_crash_is_no_progress",),
    ),
    Mutant(
        "M46", "a run fenced on its way out of memory stays there (I16)",
        (Patch("engine/run.py", "            if was_resting:  # nobody else takes it",
               "            if False:  # nobody else takes it"),),
        (f"{FOUND}::test_i16_a_run_fenced_on_its_way_out_of_memory_is_driven_on",),
    ),
    Mutant(
        "M47", "a call fenced at its end stays in memory (I16)",
        (Patch("engine/functions.py", "        run.task = None  # nobody cancels this task for",
               "        pass  # nobody cancels this task for"),
         Patch("engine/functions.py", "    try:\n        await engine.log.flush()\n    finally:\n",
               "    await engine.log.flush()\n    if engine:\n")),
        (f"{FOUND}::test_i16_a_call_fenced_at_its_end_is_driven_on",),
    ),
    Mutant(
        "M48", "a run whose undoing was cut short is at nobody's hands (I16)",
        (Patch("asgi/exchange.py", "                error, ours = raised, run.fenced is not None",
               "                raise\n"
               "                error, ours = raised, run.fenced is not None"),),
        (f"{CUT_SHORT}::test_i16_a_run_whose_request_is_cancelled_while_it_is_undone_is_taken_up",),
    ),
    Mutant(
        "M49", "a stream says how its run ended before that is durable (I1)",
        (Patch("asgi/tail.py", "        while run.over and not run.ended:",
               "        while False:"),),
        ("tests/engine/test_done.py",),
    ),
    Mutant(
        "M50", "a signal named by digits is taken for a later call (I2)",
        (Patch("standing.py", "        if entry.kind not in _CALLS:", "        if False:"),),
        ("tests/unit/test_standing.py",),
    ),
    Mutant(
        "M51", "a run that is let go drops what others have seen of it (I8)",
        (Patch("engine/endings.py", "run.fence(reason, keep=True)", "run.fence(reason)"),),
        (f"{CUT_SHORT}::test_i8_what_others_have_seen_stays_of_a_run_that_is_left",),
    ),
    Mutant(
        "M52", "a handler is told of its cancellation wherever it is (I11)",
        (Patch("engine/steering.py", "    await _come_to_rest(run)\n", ""),), (TOLD,),
    ),
    Mutant(
        "M53", "a replay does not come to the calls at work before a cancellation (I11)",
        (Patch("engine/steering.py", "    if at_work:", "    if False:"),),
        (TOLD,),
    ),
    Mutant(
        "M54", "what was done is not undone where its call was cancelled in its turn",
        (Patch("engine/attempts.py", "finally:  # also", "except AssertionError:  # also"),
         Patch("engine/attempts.py", "            return outcome(self.spec, entry)",
               "            self._undoable(entry.seq, fresh=False)\n            return outcome("
               "self.spec, entry)")), (TOLD,),
    ),
    Mutant(
        "M55", "changed code takes a run for an old one that a crash cut beside it (I11)",
        (Patch("engine/waiting.py", " or not replay.is_past(scope)", ""),),
        ("tests/engine/test_patched.py",),
    ),
    Mutant(
        "M56", "a suspect is off its trial as soon as it waits (I17)",
        (Patch("engine/recovery.py", "(run.progressed if", "(bool(run.waits.open) if"),),
        ("tests/engine/test_recovery.py",),
    ),
)  # fmt: skip
