-- Messages without an answer to runs that this node drives. $1 this node, $2 how many.
select inbox.run_id, inbox.ident, inbox.kind, inbox.data
from inbox join runs on runs.run_id = inbox.run_id
where inbox.answer is null and runs.owner = $1::text and runs.status = 'running'
order by inbox.left_at
limit $2::int
