-- What became of a batch whose commit was never answered: waits for its locks. $1 run ids.
select run_id, epoch, last_seq from runs where run_id = any($1::text[]) order by run_id for update
