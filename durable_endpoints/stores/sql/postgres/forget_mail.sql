-- Remove messages that nobody has come back for. $1 seconds.
delete from inbox where left_at < now() - make_interval(secs => $1::float8)
