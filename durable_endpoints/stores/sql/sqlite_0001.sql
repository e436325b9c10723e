-- Runs, and the frames of their journals. One process owns the file, so a run's number is dealt
-- by that process. frames.id = run number * 2^20 + first seq: one b-tree, in journal order.
create table runs (
  no integer primary key,
  run_id text not null unique,
  name text not null,
  status text not null check (status in
    ('running', 'suspended', 'completed', 'failed', 'cancelled', 'dead', 'diverged')),
  created_at_ms integer not null,
  updated_at_ms integer not null,
  epoch integer not null,
  last_seq integer not null,
  events integer not null,
  attempts integer not null,
  version text not null,
  principal text,
  idempotency_key text,
  fingerprint text,
  error text,
  wake_at_ms integer,
  waiting text,
  parent text,
  concurrency_key text
) strict;

create unique index runs_idempotency on runs (coalesce(principal, ''), name, idempotency_key)
  where idempotency_key is not null;

create index runs_unfinished on runs (status, run_id)
  where status in ('running', 'suspended', 'dead', 'diverged');

-- Timers of suspended runs: asked for every second.
create index runs_due on runs (wake_at_ms) where wake_at_ms is not null;

create index runs_parent on runs (parent) where parent is not null;

create index runs_concurrency on runs (concurrency_key, name)
  where concurrency_key is not null and status in ('running', 'suspended', 'diverged');

create table frames (
  id integer primary key,
  entries integer not null,
  first_offset integer not null,
  events integer not null,
  hash_in integer not null,
  epoch integer not null,
  data blob not null
) strict;

-- Runs that were deleted for good: their ids stay known, and whose they were.
create table deleted (run_id text primary key, principal text) strict, without rowid;

-- Open waits, for those who look for the run that waits. fields: the names in match, sorted.
create table waits (
  no integer not null,
  ident text not null,
  run_id text not null,
  kind text not null,
  name text not null,
  since_ms integer not null,
  until_ms integer,
  fields text not null,
  match text,
  summary text,
  principal text,
  primary key (no, ident)
) strict, without rowid;

create index waits_match on waits (name, fields, match);
