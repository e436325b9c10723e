-- End this node's former connection, so that what it began is either committed or never will be.
-- $1 the connection's name, $2 its process, $3 ms to wait for its end.
select pg_terminate_backend(pid, $3::bigint) from pg_stat_activity
where application_name = $1::text and pid = $2::int
