-- The answer to a message. $1 run id, $2 ident.
select answer from inbox where run_id = $1::text and ident = $2::text
