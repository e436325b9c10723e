-- How many runs of each name and status were begun in each minute, and the ids of unfinished ones.
-- $1 the first id, $2 the id that ends them or null, $3 how many are counted at most, newest first.
select created_at_ms / 60000 as minute, name, status, count(*) as runs,
  case when status in ('running', 'suspended', 'dead', 'diverged') then array_agg(run_id) end as ids
from (
  select run_id, created_at_ms, name, status from runs
  where run_id >= $1 and ($2::text is null or run_id < $2)
  order by run_id desc limit $3::int
) as newest
group by minute, name, status
