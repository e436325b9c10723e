-- How many unfinished runs there are of each status. $1 how many are counted at most.
select status, (
  select count(*) from (
    select from runs where runs.status = wanted.status
      and runs.status in ('running', 'suspended', 'dead', 'diverged')
    limit $1::int
  ) as found)
from unnest(array['running', 'suspended', 'dead', 'diverged']) as wanted (status)
