-- Lend this node some of a rate limit's bucket; see the function. $1 name, $2 key, $3 this node,
-- $4 rate, $5 capacity, $6 how many at a time, $7 and $8 tokens it has and wants, $9 to $11 uses it
-- has, that are spare, and that it wants, $12 seconds ahead, $13 seconds for which a node that waits
-- is believed to wait, $14 seconds to pause.
select tokens, uses, start_s, base_s, others from lend_quota(
  $1::text, $2::text, $3::text, $4::float8, $5::float8, $6::int, $7::int, $8::int, $9::int,
  $10::int, $11::int, $12::float8, $13::float8, $14::float8)
