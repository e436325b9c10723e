"""Every bound of the package, with its reason. Nothing grows without one (I14, I23)."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# How long, once, a handler that never waits is held for the first commit of its response.
FIRST_COMMIT_S_MAX: Final = 0.005
# The unpersisted window: what a crash can make the engine do again. Beyond it steps wait.
WINDOW_ENTRIES_MAX: Final = 1024
WINDOW_BYTES_MAX: Final = 8 * MIB
WINDOW_AGE_S_MAX: Final = 1.0

# How long a handler that never waits may keep the event loop from its readers and neighbours.
TURN_S_MAX: Final = 0.001

# A request is journalled whole; larger uploads belong in object storage.
BODY_BYTES_MAX: Final = 4 * MIB
# A step result above a mebibyte is a document, not a result: record a reference.
RESULT_BYTES_MAX: Final = 1 * MIB
# One event is one write to every reader.
EVENT_BYTES_MAX: Final = 256 * KIB
# A run above these is a batch job: split it.
RUN_ENTRIES_MAX: Final = 200_000
RUN_BYTES_MAX: Final = 64 * MIB
# An SSE block that never ends is no SSE.
SSE_BLOCK_BYTES_MAX: Final = EVENT_BYTES_MAX
# Arguments kept beside a step for people to read; the hash covers all of them.
ARGS_BYTES_MAX: Final = 1 * KIB
# A step's name is a key and a column in the console.
NAME_CHARS_MAX: Final = 200
# A key chosen by a client is stored with the run.
IDEMPOTENCY_KEY_CHARS_MAX: Final = 255
# A cursor is a run id, an offset and a hash.
CURSOR_CHARS_MAX: Final = 128

# Recent events of a run kept in memory; readers further back read from the store.
RECENT_BYTES_MAX: Final = 256 * KIB
# Events that are durable at once are joined up to this for one write to the network.
WRITE_BYTES_MAX: Final = 16 * KIB
# How much of a journal is read from the store at a time.
READ_BYTES_MAX: Final = 1 * MIB
# Readers of one run at a time.
READERS_PER_RUN_MAX: Final = 2048
# Rows of one list page.
LIST_ROWS_MAX: Final = 500

# Recoveries without a new durable entry before a run is dead (I17), and the waits between.
RECOVERIES_MAX: Final = 5
RECOVERY_BACKOFF_S: Final = (0.0, 1.0, 4.0, 16.0, 60.0, 300.0)
# Recoveries driven side by side, so that a start does not starve new requests.
RECOVERIES_PARALLEL_MAX: Final = 64
# How long one set of recoveries may keep the next one waiting.
RECOVERY_PATIENCE_S: Final = 5.0
# How long a run whose last recovery came to nothing may take, alone, to get further.
RECOVERY_SUSPECT_S: Final = 60.0
# How often unfinished runs without an owner are looked for.
SWEEP_INTERVAL_S: Final = 1.0
# A recorded step that replay never reaches means that the code has changed (I11).
REPLAY_STALL_S: Final = 60.0
# Runs driven at a time by one process; further requests get 503.
RUNS_LIVE_MAX: Final = 10_000

# Silence before a heartbeat comment: below the usual 30 to 60 s idle limits of proxies.
HEARTBEAT_S: Final = 15.0
# A reader that takes nothing for so long is gone; it can come back with its cursor.
SEND_STALL_S: Final = 30.0
# What running steps get at SIGTERM before their run is left to the next process.
DRAIN_S: Final = 10.0
# How long a successor waits for its predecessor's lock, as with --reload.
LOCK_WAIT_S: Final = 10.0

# The log file is folded back when the writer is idle, and at once when it has grown to this.
CHECKPOINT_IDLE_BYTES: Final = 4 * MIB
CHECKPOINT_FORCE_BYTES: Final = 64 * MIB
# Blocks that the log file gets at start: more than the log holds between two idle moments.
LOG_PREALLOCATED_BYTES: Final = 8 * MIB
CHECKPOINT_IDLE_S: Final = 0.25
