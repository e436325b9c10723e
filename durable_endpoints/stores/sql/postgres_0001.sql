-- Runs, and the frames of their journals, for many nodes. Every time of a lease is this
-- database's. Rows of runs are locked in the order of their ids (append, claim, wake).
create table nodes (
  node text collate "C" primary key,
  lease_until timestamptz not null,
  started_at timestamptz not null default now(),
  host text not null
);

create index nodes_lease on nodes (lease_until);

create table runs (
  run_id text collate "C" primary key,
  name text not null,
  status text not null check (status in
    ('running', 'suspended', 'completed', 'failed', 'cancelled', 'dead', 'diverged')),
  created_at_ms bigint not null,
  updated_at_ms bigint not null,
  epoch bigint not null,
  last_seq bigint not null,
  events bigint not null,
  attempts integer not null,
  version text not null,
  principal text,
  idempotency_key text,
  fingerprint text,
  error text,
  wake_at_ms bigint,
  waiting text,
  parent text collate "C",
  concurrency_key text,
  owner text collate "C" not null default ''  -- the node that drives it; '' for none
) with (fillfactor = 70);  -- room for updates beside the row, which then touch no index

create unique index runs_idempotency on runs (coalesce(principal, ''), name, idempotency_key)
  where idempotency_key is not null;

create index runs_unfinished on runs (status, run_id)
  where status in ('running', 'suspended', 'dead', 'diverged');

-- Runs whose owner is gone: asked for every second by every node. A parked run has an owner while
-- somebody has claimed it and has not written yet.
create index runs_owner on runs (status, owner, run_id)
  where status in ('running', 'dead', 'diverged');

-- Timers of suspended runs: asked for every second by every node.
create index runs_due on runs (status, wake_at_ms) where wake_at_ms is not null;

create index runs_parent on runs (parent) where parent is not null;

create index runs_concurrency on runs (concurrency_key, name)
  where concurrency_key is not null and status in ('running', 'suspended', 'diverged');

create table frames (
  run_id text collate "C" not null,
  first_seq bigint not null,
  entries integer not null,
  first_offset bigint not null,
  events integer not null,
  hash_in bigint not null,
  epoch bigint not null,
  data bytea not null,
  primary key (run_id, first_seq)
) with (toast_tuple_target = 8160);  -- one row a frame, up to what a page holds

-- Frames are written once and by a commit that somebody waits for: they are not compressed.
alter table frames alter column data set storage external;

-- Runs that were deleted for good: their ids stay known, and whose they were.
create table deleted (run_id text collate "C" primary key, principal text);

-- Open waits, for those who look for the run that waits. fields: the names in match, sorted.
create table waits (
  run_id text collate "C" not null,
  ident text collate "C" not null,
  kind text not null,
  name text not null,
  since_ms bigint not null,
  until_ms bigint,
  fields text not null,
  match text,
  summary text,
  principal text,
  primary key (run_id, ident)
);

create index waits_match on waits (name, fields, match);

-- Messages to runs that another node drives, until that node has answered them.
create table inbox (
  run_id text collate "C" not null,
  ident text collate "C" not null,
  kind text not null,
  data bytea not null,
  sender text collate "C" not null,  -- the node that waits for the answer; '' for none
  answer bytea,
  left_at timestamptz not null default now(),
  primary key (run_id, ident)
);

create index inbox_open on inbox (left_at) where answer is null;
