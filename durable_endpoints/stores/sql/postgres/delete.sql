-- Remove a run and all that belongs to it; its id stays known. $1 run id.
with gone as (
  delete from runs where run_id = $1::text returning run_id, principal
),
frames_gone as (delete from frames using gone where frames.run_id = gone.run_id),
waits_gone as (delete from waits using gone where waits.run_id = gone.run_id),
inbox_gone as (delete from inbox using gone where inbox.run_id = gone.run_id),
noted as (
  insert into deleted (run_id, principal) select run_id, principal from gone
  on conflict do nothing
)
select run_id from gone
