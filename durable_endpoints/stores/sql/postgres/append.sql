-- One batch, in one statement. A frame is written only if its run has its epoch and ends just
-- before it (I6); the ids of those that were written come back.
-- Order: new runs first (they may wait for another node's idempotency key), then the rows of
-- known runs in the order of their ids, so that no two nodes wait for each other.
-- Sections between "--+" and "--." are left out of batches that have no use for them.
-- $1..$14 frames, $15 every run id to lock, $16..$25 the openings among the frames, $26 this
-- node, $27 whom the frames wake, $28..$37 waits opened, $38..$39 waits that are over, $40 the
-- labels of runs, where they have changed, $41 whether an opening excludes others of its key.
-- Openings of one concurrency key have an order: they wait for each other, in the order of the
-- keys' hashes and before anything else is written. An exclusive one is left out while there is an
-- unfinished one: the unique index knows it even of a commit that this statement does not see.
-- Whoever is next when a run of a key ends is due at once if it is suspended; one whose row somebody
-- has locked is awake, or looks for itself.
with given as materialized (
  select * from unnest(
    $1::text[], $2::bigint[], $3::bigint[], $4::int[], $5::bigint[], $6::int[], $7::bigint[],
    $8::bytea[], $9::bigint[], $10::text[], $11::text[], $12::bool[], $13::bigint[], $14::text[]
    --+ waits
    , $27::text[], $40::text[]
    --.
  ) as frame (run_id, epoch, first_seq, entries, first_offset, events, hash_in,
    data, at_ms, status, error, progress, wake_at_ms, waiting
    --+ waits
    , wakes, labels
    --.
  )
),
--+ openings
--+ keys
places as materialized (
  select pg_advisory_xact_lock(place) from (
    select distinct hashtextextended(json_build_array(
      current_schema(), name, principal, concurrency_key)::text, 0) as place
    from unnest($17::text[], $21::text[], $25::text[]) as run (name, principal, concurrency_key)
    where concurrency_key is not null
    order by place
  ) as wanted
),
turns as materialized (
  select run_id, exclusive, nextval('turns') as turn
  from unnest($16::text[], $25::text[], $41::bool[]) with ordinality
    as run (run_id, concurrency_key, exclusive, nth)
  where concurrency_key is not null and (select count(*) from places) >= 0
  order by nth
),
--.
opened as (
  insert into runs (run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events,
    attempts, version, principal, idempotency_key, fingerprint, error, wake_at_ms, waiting,
    parent, concurrency_key, owner
    --+ waits
    , labels
    --.
    --+ keys
    , turn, exclusive
    --.
    )
  select frame.run_id, run.name, frame.status, run.created_at_ms, frame.at_ms, frame.epoch,
    frame.first_seq + frame.entries - 1, frame.first_offset + frame.events, run.attempts,
    run.version, run.principal, run.idempotency_key, run.fingerprint, frame.error,
    frame.wake_at_ms, frame.waiting, run.parent, run.concurrency_key,
    case when frame.status = 'running' then $26::text else '' end
    --+ waits
    , frame.labels
    --.
    --+ keys
    , turns.turn, coalesce(turns.exclusive, false)
    --.
  from unnest(
    $16::text[], $17::text[], $18::bigint[], $19::int[], $20::text[], $21::text[], $22::text[],
    $23::text[], $24::text[], $25::text[]
  ) as run (run_id, name, created_at_ms, attempts, version, principal, idempotency_key,
    fingerprint, parent, concurrency_key)
  join given frame on frame.run_id = run.run_id
  --+ keys
  left join turns on turns.run_id = run.run_id
  --.
  where not exists (select from deleted where deleted.run_id = run.run_id)
  order by run.name, coalesce(run.principal, ''), run.idempotency_key
  on conflict do nothing
  returning run_id
),
--.
locked as materialized (
  select run_id, epoch, last_seq, status from runs
  where run_id = any($15::text[])
    --+ openings
    and (select count(*) from opened) >= 0
    --.
  order by run_id
  for no key update
),
advanced as (
  update runs set
    last_seq = frame.first_seq + frame.entries - 1,
    events = frame.first_offset + frame.events,
    status = frame.status,
    updated_at_ms = frame.at_ms,
    error = frame.error,
    attempts = case when frame.progress then 0 else runs.attempts end,
    wake_at_ms =
      --+ waits
      case when frame.status = 'suspended' and frame.run_id in (select wakes from given) then 0
      else
      --.
      frame.wake_at_ms
      --+ waits
      end
      --.
      ,
    waiting = frame.waiting,
    --+ waits
    labels = coalesce(frame.labels, runs.labels),
    --.
    owner = case when frame.status = 'running' then runs.owner else '' end
  from given frame
  join locked on locked.run_id = frame.run_id and locked.epoch = frame.epoch
    and locked.last_seq = frame.first_seq - 1
  where runs.run_id = frame.run_id
  returning runs.run_id
    --+ freed
    , runs.name, runs.principal, runs.concurrency_key
    --.
),
--+ freed
passed as (
  update runs set wake_at_ms = 0
  from (
    select runs.run_id
    from given join advanced ended using (run_id)
    cross join lateral (
      select run_id from runs
      where concurrency_key = ended.concurrency_key and name = ended.name
        and coalesce('p' || principal, '') = coalesce('p' || ended.principal, '')
        and status in ('running', 'suspended', 'diverged')
        and run_id <> ended.run_id
      order by turn
      limit 1
    ) first
    join runs on runs.run_id = first.run_id
    where given.status in ('completed', 'failed', 'cancelled', 'dead')
      and runs.status = 'suspended' and runs.waiting like '%"turn"%'
      and runs.run_id not in (select run_id from given)
    for no key update of runs skip locked
  ) next
  where runs.run_id = next.run_id
),
--.
written as materialized (
  select run_id from advanced
  --+ openings
  union all select run_id from opened
  --.
),
--+ waits
woken as (
  update runs set wake_at_ms = 0
  from given join written using (run_id) join locked on locked.run_id = given.wakes
  where runs.run_id = locked.run_id and locked.status = 'suspended'
    and locked.run_id not in (select run_id from written)
),
answered as (
  delete from waits
  using unnest($38::text[], $39::text[]) as gone (run_id, ident)
  join written on written.run_id = gone.run_id
  where waits.run_id = gone.run_id and (gone.ident = '*' or waits.ident = gone.ident)
),
awaited as (
  insert into waits (run_id, ident, kind, name, since_ms, until_ms, fields, match, summary,
    principal)
  select wait.* from unnest(
    $28::text[], $29::text[], $30::text[], $31::text[], $32::bigint[], $33::bigint[],
    $34::text[], $35::text[], $36::text[], $37::text[]
  ) as wait (run_id, ident, kind, name, since_ms, until_ms, fields, match, summary, principal)
  join written on written.run_id = wait.run_id
  on conflict (run_id, ident) do update set
    kind = excluded.kind, name = excluded.name, since_ms = excluded.since_ms,
    until_ms = excluded.until_ms, fields = excluded.fields, match = excluded.match,
    summary = excluded.summary, principal = excluded.principal
),
--.
stored as (
  insert into frames (run_id, first_seq, entries, first_offset, events, hash_in, epoch, data)
  select run_id, first_seq, entries, first_offset, events, hash_in, epoch, data
  from given join written using (run_id)
  where entries > 0
)
select run_id from written
