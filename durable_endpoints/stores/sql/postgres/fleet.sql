-- The nodes, living ones first, and how many runs each drives. $1 how many nodes, $2 how many
-- runs are counted of each.
select node, host, extract(epoch from lease_until - now())::float8 as lease_s,
  (extract(epoch from started_at) * 1000)::bigint as since_ms, (
    select count(*) from (
      select from runs where owner = node and status = 'running' limit $2::int
    ) as driven
  ) as runs
from nodes
order by lease_until < now(), node
limit $1::int
