-- Answer a message, or remove it if nobody waits for the answer; returns who waits.
-- $1 run id, $2 ident, $3 the answer.
with done as (
  delete from inbox where run_id = $1::text and ident = $2::text and sender = ''
)
update inbox set answer = $3::bytea
where run_id = $1::text and ident = $2::text and sender <> ''
returning sender
