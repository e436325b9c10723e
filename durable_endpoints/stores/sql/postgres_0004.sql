-- What an edge node has on its own disk only, as it said last: JSON of entries, bytes, since_ms,
-- at_ms. Null for nodes that have no disk of their own.
alter table nodes add column unshipped text;
