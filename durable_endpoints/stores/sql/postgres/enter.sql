-- Enter this node, or renew its lease; returns the database's time in ms. $1 node, $2 seconds,
-- $3 host.
insert into nodes (node, lease_until, host)
values ($1::text, now() + make_interval(secs => $2::float8), $3::text)
on conflict (node) do update set lease_until = excluded.lease_until
returning (extract(epoch from clock_timestamp()) * 1000)::bigint
