-- Take charge of runs that nobody has: their epoch rises, so whoever had them is fenced (I6).
-- Waits for an append in flight, and then sees what it wrote.
-- $1 run ids, $2 this node, $3 now in ms, $4 whether dead runs count as unfinished.
with free as materialized (
  select run_id from runs
  where run_id = any($1::text[])
    and (status in ('running', 'suspended', 'diverged') or ($4::bool and status = 'dead'))
    and (owner in ('', $2::text)
      or owner in (select node from nodes where lease_until <= now()))
  order by run_id
  for no key update
)
update runs set
  epoch = epoch + 1,
  updated_at_ms = $3::bigint,
  attempts = attempts + (status <> 'suspended')::int,
  status = case when status = 'suspended' then 'running' else status end,
  wake_at_ms = null,
  waiting = null,
  owner = $2::text
from free
where runs.run_id = free.run_id
returning runs.run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events,
  attempts, version, principal, idempotency_key, fingerprint, error, wake_at_ms, waiting, parent,
  concurrency_key, labels
