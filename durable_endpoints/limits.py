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

# How long one thread may keep the interpreter from another while a commit is on its way: a switch
# takes some 5 us, so shorter turns would cost more than they gain.
SWITCH_US: Final = 100

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
# Idle for so long in nothing but durable waits, a run leaves memory; replaying it costs less.
SUSPEND_GRACE_S: Final = 1.0
# How often suspended runs that are due are looked for: a timer is at most a second late.
DUE_INTERVAL_S: Final = 0.5
# No time of a run is later: the end of the year 9999, which is what a datetime can show.
FAR_MS: Final = 253_402_300_799_000
# Timers look at the wall clock again at least so often, should it have jumped.
TIMER_RECHECK_S: Final = 30.0
# A run that waits for a child looks for its end itself so often, should nobody have told it.
CHILD_RECHECK_S: Final = 60.0
# A signal is a decision or a message; larger things are referred to.
SIGNAL_BYTES_MAX: Final = 256 * KIB
# Signals that nobody has waited for yet: a run that takes none is not a mailbox.
SIGNALS_KEPT_MAX: Final = 1000
# Labels are for finding runs, not for keeping data: a row of the list stays a row.
LABELS_MAX: Final = 16
LABEL_NAME_CHARS_MAX: Final = 64
LABEL_VALUE_CHARS_MAX: Final = 200
# Waits, child runs and compensations of one run at a time.
WAITS_OPEN_MAX: Final = 10_000
# Events whose runs are remembered, so that one that is sent again gets the same answer.
EVENTS_REMEMBERED_MAX: Final = 10_000
# How long who sends a signal waits for a suspended run to come back.
WAKE_S: Final = 15.0

# Unfinished runs of a status that metrics count: more are as many, and counting stays quick.
RUNS_COUNTED_MAX: Final = 100_000
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
# Deleted data leaves the log at once, unless somebody outside reads the database: how long a
# deletion waits for that, and how often it is tried behind it: from, up to.
EMPTY_LOG_WAIT_S: Final = 1.0
EMPTY_LOG_AGAIN_S: Final = (0.01, 1.0)

# A server that asks for a longer wait than this is not waited for by the clock alone.
RETRY_HINT_S_MAX: Final = 86_400.0
# Rate limits' buckets in use at one time, 1 kB each; one at rest is forgotten.
QUOTA_BUCKETS_MAX: Final = 100_000
# Callers that wait in memory at one bucket; the next ones are to suspend and ask again.
QUOTA_WAITERS_MAX: Final = 10_000
# Owners of one bucket whose callers are put off each by itself; the others are put off as one.
QUOTA_OWNERS_MAX: Final = 10_000
# Time between two callers that come back to a bucket: each is a replay, so at most 500 a second.
QUOTA_WAKE_S_MIN: Final = 0.002
# How far callers are put off beyond the time at which one could be served: a promise further
# away is worth little, since the others may be cancelled by then.
QUOTA_HORIZON_S: Final = 3_600.0
# Over several nodes: how far ahead a node is lent tokens, and how long it keeps one unused. In any
# time, at most so much more of a limit is used than it allows.
QUOTA_AHEAD_S: Final = 0.25
QUOTA_KEPT_S: Final = 0.25
# Tokens lent at a time: what a node of a very high limit takes in that time.
QUOTA_LENT_MAX: Final = 1_000
# How soon, and how late, a node asks again for what there was not.
QUOTA_POLL_S: Final = (0.02, 0.5)
# How often a node that holds uses at a time looks whether others wait for them.
QUOTA_RENEW_S: Final = 0.5
# A node that has not asked again for so long does not wait any more.
QUOTA_FRESH_S: Final = 1.5
# An approval link travels in mails, and mail programs cut long lines: 1 kB is a name of 200
# letters of three bytes each, and the signatures of two secrets.
LINK_CHARS_MAX: Final = 1024
# Secrets in use at one time: a new one, an old one, and room for a slow change of both.
LINK_SECRETS_MAX: Final = 4

# A node's lease: others may take its runs when it is over. Long enough for a pause of the process
# or a restart of the database, short enough for a reader to wait for. A node renews it three
# times in that time, and stops by its own clock well before others begin.
LEASE_TTL_S: Final = 10.0
LEASE_TTL_S_MIN: Final = 1.0
LEASE_RENEW_SHARE: Final = 0.3
LEASE_FENCE_SHARE: Final = 0.8
# Nodes that ended without a word are remembered for so long; they are rows to be read.
NODES_KEPT_S: Final = 86_400.0
# How long PostgreSQL is waited for at start: its container may be starting too.
POSTGRES_OPEN_S: Final = 30.0
# How long it may take to answer; beyond that the connection is given up and made again.
POSTGRES_ANSWER_S: Final = 5.0
# How long a read, or a claim, is tried again while the store is away; then the caller is told.
STORE_PATIENCE_S: Final = 1.0
# Waits between two attempts to reach it: from the first to the longest, doubling.
POSTGRES_RETRY_S: Final = (0.02, 0.5)
# Connections of one node for reads and claims, beside the writer, the lease and the news.
POSTGRES_READERS_MAX: Final = 4
# Frames of one read: what a read's limit in bytes holds of the smallest ones.
POSTGRES_READ_FRAMES_MAX: Final = 1024
# Places in the code that the detector of unannotated effects warns of: more are not read.
DETECTOR_PLACES_MAX: Final = 1_000
# How often a node looks at what it follows on other nodes: with news of them, and without.
NODES_POLL_S: Final = 1.0
NODES_POLL_DEAF_S: Final = 0.1
# How long a node tells another one of a run's commits without being asked again.
WATCH_S: Final = 5.0
# Runs in one such request; a notification holds 8,000 bytes.
WATCHED_TOLD_MAX: Final = 200
# How often a node looks whether its lease still holds.
LEASE_LOOK_S: Final = 0.25
# Messages between nodes that nobody has come back for are kept for so long.
MAIL_KEPT_S: Final = 600.0

# An edge node's frames travel to the centre in rounds: a pause gathers a stream's tokens.
EDGE_ROUND_S: Final = 0.05
EDGE_ROUND_RUNS_MAX: Final = 256
EDGE_ROUND_BYTES_MAX: Final = 1 * MIB
# What an edge node may have on its own disk only; beyond that it takes no new runs.
EDGE_UNSHIPPED_BYTES_MAX: Final = 256 * MIB
# Runs that wait for longer than this are handed to the centre.
EDGE_HAND_OVER_S: Final = 30.0
# How long a node that starts waits for the centre to say which runs are still its own.
EDGE_OPEN_S: Final = 3.0
# How long the centre is asked what the node can do without; then it is left alone for a while.
EDGE_ASK_S: Final = 0.5
EDGE_ASK_AGAIN_S: Final = 2.0
# How often the centre is told how far it is behind.
EDGE_TELL_S: Final = 5.0
# How long a node that stops tries to hand its runs over.
EDGE_LEAVE_S: Final = 5.0
