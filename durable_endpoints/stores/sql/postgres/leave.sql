-- Leave in good order: what this node still has is anybody's, at once. $1 node.
with mine as materialized (
  select run_id from runs
  where owner = $1::text and status in ('running', 'dead', 'diverged')
  order by run_id
  for no key update
),
handed as (update runs set owner = '' from mine where runs.run_id = mine.run_id)
delete from nodes where node = $1::text
