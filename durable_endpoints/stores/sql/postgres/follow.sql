-- Where runs stand, and the living node that drives each, if one does. $1 run ids.
select run_id, epoch, last_seq, status,
  case when status = 'running'
    and exists (select from nodes where node = owner and lease_until > now())
    then owner else '' end
from runs where run_id = any($1::text[])
