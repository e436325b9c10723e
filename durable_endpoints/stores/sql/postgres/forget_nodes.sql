-- Forget nodes that ended long ago and have no runs. $1 seconds.
delete from nodes
where lease_until < now() - make_interval(secs => $1::float8)
  and not exists (
    select from runs
    where runs.owner = nodes.node and runs.status in ('running', 'dead', 'diverged'))
