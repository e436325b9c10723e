-- Tell other nodes, outside of every journal's transaction. $1 channels, $2 what to tell.
select pg_notify(channel, told) from unnest($1::text[], $2::text[]) as news (channel, told)
