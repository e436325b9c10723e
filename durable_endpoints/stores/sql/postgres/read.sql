-- Frames in order, from the one that holds seq $2 and event $3 on, up to $4 bytes and $5 frames.
select first_seq, entries, first_offset, events, hash_in, data
from (
  select *, sum(octet_length(data)) over (order by first_seq) - octet_length(data) as before
  from (
    select first_seq, entries, first_offset, events, hash_in, data from frames
    where run_id = $1::text
      and first_seq >= greatest(
        (select first_seq from frames where run_id = $1::text and first_seq <= $2::bigint
          order by first_seq desc limit 1),
        (select first_seq from frames where run_id = $1::text and first_offset <= $3::bigint and $3::bigint > 0
          order by first_seq desc limit 1),
        0)
      and first_seq + entries > $2::bigint
      and first_offset + events > $3::bigint
    order by first_seq
    limit $5::int
  ) as found
) as measured
where before < $4::bigint
order by first_seq
