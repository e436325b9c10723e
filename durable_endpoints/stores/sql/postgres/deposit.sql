-- Leave a message for a run that another living node drives; returns that node. One of the same
-- name may be there already. $1 run id, $2 ident, $3 kind, $4 data, $5 sender, $6 this node.
with there as materialized (
  select run_id, owner from runs
  where run_id = $1::text and status = 'running' and owner <> $6::text
    and exists (select from nodes where node = owner and lease_until > now())
),
put as (
  insert into inbox (run_id, ident, kind, data, sender)
  select run_id, $2::text, $3::text, $4::bytea, $5::text from there
  on conflict do nothing
)
select owner from there
