-- Hand runs over at once: whoever looks next may claim them. $1 run ids, $2 this node.
with mine as materialized (
  select run_id from runs where run_id = any($1::text[]) and owner in ('', $2::text)
  order by run_id
  for no key update
)
update runs set attempts = 0, owner = '' from mine where runs.run_id = mine.run_id
