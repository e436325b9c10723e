-- Concurrency keys and rate limits, which hold over all nodes.
-- turn: the order in which runs of one concurrency key were opened: drawn under a lock of the key
-- that is held until the commit, so it is the order of the commits, too. exclusive: whether there
-- may be only one unfinished run of the key.
create sequence turns;
alter table runs add column turn bigint;
alter table runs add column exclusive boolean not null default false;

drop index runs_concurrency;
-- 'p' sets the principal '' apart from none.
create index runs_concurrency
  on runs (concurrency_key, name, coalesce('p' || principal, ''), turn)
  where concurrency_key is not null and status in ('running', 'suspended', 'diverged');

create unique index runs_exclusive on runs (concurrency_key, name, coalesce('p' || principal, ''))
  where exclusive and status in ('running', 'suspended', 'diverged');

-- Rate limits: one row a name and key that was used lately. full_at: when the bucket is full again,
-- in seconds of this database's clock; what is taken, or promised for a little later, moves it on.
create table quotas (
  name text collate "C" not null,
  key text collate "C" not null,
  full_at double precision not null default 0,
  pause_end double precision not null default 0,
  primary key (name, key)
) with (fillfactor = 50);

-- The uses at a time that a node has, and since when it waits for more.
create table quota_nodes (
  name text collate "C" not null,
  key text collate "C" not null,
  node text collate "C" not null,
  held integer not null,
  wants_since double precision,
  seen_at double precision not null,
  primary key (name, key, node)
) with (fillfactor = 50);

-- Lend a node some of a bucket. It has tokens_had tokens and uses_had uses at a time, of which
-- uses_spare wait for a token; it wants so many more of each. Nodes that have waited longer are left
-- one each, and all that wait their part of the free tokens, unless this one has waited for more:
-- what it gets must not hang on when it asks. No token is lent without a use for it, nor a use
-- without a token. Token n, from 0, comes at greatest(start_s, base_s + n / rate) seconds from now.
-- others: how many nodes wait besides. Every statement in here sees what was committed before the
-- bucket's row was locked.
create function lend_quota(
  asked_name text, asked_key text, asked_node text, rate double precision,
  capacity double precision, concurrent integer, tokens_had integer, tokens_wanted integer,
  uses_had integer, uses_spare integer, uses_wanted integer,
  ahead_s double precision, fresh_s double precision, pause_s double precision,
  out tokens integer, out uses integer, out start_s double precision,
  out base_s double precision, out others integer
) language plpgsql as $$
declare
  bucket quotas;
  now_s double precision;
  since_s double precision;
  older integer;
  free integer;
  used integer;
  waits boolean;
begin
  -- What a crash of the server forgets of it costs a moment's tokens: no disk is waited for.
  perform set_config('synchronous_commit', 'off', true);
  loop
    select * into bucket from quotas where name = asked_name and key = asked_key for update;
    exit when found;
    insert into quotas (name, key) values (asked_name, asked_key) on conflict do nothing;
  end loop;
  now_s := extract(epoch from clock_timestamp());
  if pause_s > 0 then
    bucket.pause_end := greatest(bucket.pause_end, now_s + pause_s);
  end if;
  start_s := greatest(bucket.pause_end - now_s, 0);

  select coalesce(sum(q.held), 0),
    count(*) filter (where q.wants_since is not null and q.seen_at > now_s - fresh_s)
  into used, others
  from quota_nodes q join nodes on nodes.node = q.node and nodes.lease_until > now()
  where q.name = asked_name and q.key = asked_key and q.node <> asked_node;
  select q.wants_since into since_s from quota_nodes q
  where q.name = asked_name and q.key = asked_key and q.node = asked_node
    and q.seen_at > now_s - fresh_s;
  since_s := coalesce(since_s, now_s);
  select count(*) into older
  from quota_nodes q join nodes on nodes.node = q.node and nodes.lease_until > now()
  where q.name = asked_name and q.key = asked_key and q.node <> asked_node
    and q.wants_since < since_s and q.seen_at > now_s - fresh_s;

  tokens := tokens_wanted;
  uses := uses_wanted;
  if concurrent is not null then
    uses := least(uses, concurrent - used - uses_had - older);
  end if;
  if rate is not null then
    -- After a pause there is one, and the others come at the rate.
    bucket.full_at := greatest(bucket.full_at, bucket.pause_end + (capacity - 1) / rate);
    base_s := bucket.full_at + (1 - capacity) / rate - now_s;
    free := case when start_s > ahead_s then 0
      else floor(capacity + 1e-6 - greatest(0, bucket.full_at - now_s - ahead_s) * rate) end;
    tokens := greatest(0, least(tokens, free - older,
      ceil(greatest(rate * (now_s - since_s), free) / (others + 1))));
    if concurrent is not null then
      uses := least(uses, tokens_had + tokens - uses_spare);
      tokens := least(tokens, uses_spare + greatest(uses, 0) - tokens_had);
    end if;
  end if;
  tokens := greatest(tokens, 0);
  uses := greatest(uses, 0);
  waits := tokens < tokens_wanted or uses < uses_wanted;
  if rate is not null and tokens > 0 then
    bucket.full_at := greatest(bucket.full_at, now_s) + tokens / rate;
  end if;
  update quotas set full_at = bucket.full_at, pause_end = bucket.pause_end
  where name = asked_name and key = asked_key;

  uses_had := uses_had + uses;
  if uses_had = 0 and not waits then
    delete from quota_nodes
    where name = asked_name and key = asked_key and node = asked_node;
  else
    insert into quota_nodes (name, key, node, held, wants_since, seen_at)
    values (asked_name, asked_key, asked_node, uses_had, case when not waits then null
      when tokens > 0 or uses > 0 then now_s else since_s end, now_s)
    on conflict (name, key, node) do update set held = excluded.held,
      wants_since = excluded.wants_since, seen_at = excluded.seen_at;
  end if;
end $$;
