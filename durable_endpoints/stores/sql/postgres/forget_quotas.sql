-- Forget buckets that are at rest, and what nodes had that are gone. $1 seconds.
with gone as (
  delete from quota_nodes
  where seen_at < extract(epoch from now()) - $1::float8
    and node not in (select node from nodes where lease_until > now())
)
delete from quotas
where greatest(full_at, pause_end) < extract(epoch from now()) - $1::float8
  and not exists (
    select from quota_nodes q where q.name = quotas.name and q.key = quotas.key)
