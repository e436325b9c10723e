"""The hot statements find their rows by keys, with statistics and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durable_endpoints.stores import postgres_query, postgres_rows
from durable_endpoints.stores.postgres import _DELETED, _FIND, _GET, _NEXT_FIELDS, PostgresStore
from durable_endpoints.stores.postgres_link import connect, sql
from durable_endpoints.stores.protocol import Query, WaitQuery
from tests.conformance.made import frame, opening, record, wait
from tests.postgres.test_keys import keyed

RUNS = 20_000
# What one statement may touch in all: its few rows, several times over; 70 runs are unowned.
ROWS_MAX = 400
_TABLES = ("runs", "frames", "waits", "inbox", "nodes", "deleted", "quotas")
_FILL = f"""
insert into runs (run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events,
    attempts, version, principal, idempotency_key, wake_at_ms, owner)
  select 'x' || i, 'POST /chat', case when i % 100 = 0 then 'running' when i % 2 = 0
    then 'suspended' when i % 99 = 0 then 'dead' else 'completed' end,
    1, 1, 1, 1, 1, 0, '1', 'p' || i % 10, 'k' || i, case when i % 2 = 0 then 1000 + i end,
    case when i % 100 = 0 then 'n' || i % 300 else '' end
  from generate_series(1, {RUNS}) i;
update runs set labels = '{{"tenant":"t' || run_id || '"}}' where run_id like '%0';
insert into frames (run_id, first_seq, entries, first_offset, events, hash_in, epoch, data)
  select 'x' || i, 0, 1, 0, 1, 0, 1, 'data' from generate_series(1, {RUNS}) i;
insert into frames (run_id, first_seq, entries, first_offset, events, hash_in, epoch, data)
  select 'long', i, 1, i, 1, 0, 1, 'data' from generate_series(0, 2000) i;
insert into waits (run_id, ident, kind, name, since_ms, fields, match)
  select 'x' || i, 'w', 'signal', 'name' || i % 1000, 1, 'order', '{{"order":' || i || '}}'
  from generate_series(1, {RUNS}) i;
insert into inbox (run_id, ident, kind, data, sender, answer)
  select 'x' || i, 'm', 'signal', '', 'n1', '' from generate_series(1, 10000) i;
insert into runs (run_id, name, status, created_at_ms, updated_at_ms, epoch, last_seq, events,
    attempts, version, concurrency_key, turn, waiting)
  select 'q' || i, 'POST /chat', case when i = 1 then 'running' else 'suspended' end,
    1, 1, 1, 1, 1, 0, '1', 'queue', i, '[{{"kind":"turn"}}]' from generate_series(1, 5000) i;
insert into quotas (name, key) select 'n' || i % 10, 'k' || i from generate_series(1, 5000) i;
insert into nodes (node, lease_until, host)
  select 'n' || i, now() + interval '1 day', 'there' from generate_series(1, 300) i;
"""


def append(*batch: Any) -> tuple[str, list[Any]]:
    sections, values = postgres_rows.arguments(batch, "me")
    return sql("postgres/append", *sections), values


HOT: dict[str, Callable[[], tuple[str, list[Any]]]] = {
    "append": lambda: append(frame("x100", 2, offset=1, events=1), frame("x200", 2, offset=1)),
    "append an opening": lambda: append(opening("new1"), frame("x300", 2, offset=1)),
    "append a key": lambda: append(
        frame("new2", opening=record("new2", principal="ann", idempotency_key="k1"))
    ),
    "append waits": lambda: append(
        opening("new3", waits=(wait("new3"),)),
        frame("x400", 2, offset=1, answered=("*",), wakes="x402"),
        frame("x500", 2, offset=1, answered=("w",), status="suspended", wake_at_ms=7),
    ),
    "append concurrency keys": lambda: append(
        keyed("new4", exclusive=True), keyed("new5", "queue"), frame("x300", 2, offset=1)
    ),
    "append the end of a key's run": lambda: append(
        frame("q1", 2, offset=1, status="completed", frees=True), opening("new6")
    ),
    "claim": lambda: (sql("postgres/claim"), [["x600", "x602", "x700"], "me", 5, False]),
    "release": lambda: (sql("postgres/release"), [["x600"], "me"]),
    "read by seq": lambda: (sql("postgres/read"), ["x7", 0, -1, 1000, 50]),
    "read a tail": lambda: (sql("postgres/read"), ["long", 1990, 1990, 1000, 50]),
    "delete": lambda: (sql("postgres/delete"), ["x9"]),
    "get": lambda: (_GET, ["x5"]),
    "find": lambda: (_FIND, ["p5", "POST /chat", "k5"]),
    "was deleted": lambda: (_DELETED, ["x5", None]),
    "unowned": lambda: postgres_query.list_sql(Query(("running",), unowned=True), "me"),
    "due": lambda: postgres_query.list_sql(Query(("suspended",), due_ms=1010), "me"),
    "children": lambda: postgres_query.list_sql(Query(parent="x5"), "me"),
    "concurrency": lambda: postgres_query.list_sql(
        Query(name="POST /chat", concurrency_key="queue", limit=1), "me"
    ),
    "lend": lambda: (
        sql("postgres/lend"),
        ["n5", "k5", "me", 5.0, 9.0, 3, 0, 2, 1, 0, 2, 0.25, 1.5, 0.0],
    ),
    "append labels": lambda: append(
        opening("new4", labels='{"a":"b"}'), frame("x800", 2, offset=1, labels='{"a":"c"}')
    ),
    "labelled": lambda: postgres_query.list_sql(Query(labels=("tenant:tx50",), limit=20), "me"),
    "newest": lambda: postgres_query.list_sql(Query(limit=20), "me"),
    "waits of a run": lambda: postgres_query.waits_sql(WaitQuery(run_id="x5"), []),
    "waits of an event": lambda: postgres_query.waits_sql(
        WaitQuery("name5", payload={}), [("order", '{"order":5}'), ("a,b", "{}")]
    ),
    "fields of waits": lambda: (_NEXT_FIELDS, ["name5", ""]),
    "renew": lambda: (sql("postgres/enter"), ["n5", 10.0, "there"]),
    "follow": lambda: (sql("postgres/follow"), [["x5", "x100"]]),
    "deposit": lambda: (sql("postgres/deposit"), ["x100", "m1", "signal", b"{}", "me", "me"]),
    "mail": lambda: (sql("postgres/mail"), ["me", 50]),
    "answer": lambda: (sql("postgres/answer"), ["x100", "m", b"{}"]),
    "answer to": lambda: (sql("postgres/answer_to"), ["x100", "m"]),
    "withdraw": lambda: (sql("postgres/withdraw"), ["x100", "m"]),
    "resolve": lambda: (sql("postgres/resolve"), [["x5", "x6"]]),
}


@pytest.fixture(scope="module", params=["without statistics", "with statistics"])
def address(request: pytest.FixtureRequest, postgres: Callable[[], str]) -> Iterator[str]:
    address = postgres()

    async def fill() -> None:
        store = PostgresStore(address)
        await store.open()
        await store.close()
        connection = await connect(store.address, "test")
        for table in _TABLES:  # the server would come by with statistics at any moment
            await connection.execute(f"alter table {table} set (autovacuum_enabled = false)")
        await connection.execute(_FILL)
        if request.param == "with statistics":
            for table in _TABLES:
                await connection.execute(f"analyze {table}")
        await connection.close()

    asyncio.run(fill())
    return address


@pytest.mark.parametrize("name", HOT)
def test_hot_statements_touch_only_their_rows(address: str, name: str) -> None:
    statement, values = HOT[name]()

    async def main() -> Any:
        connection = await connect(PostgresStore(address).address, "test")
        transaction = connection.transaction()
        await transaction.start()
        asked = f"explain (analyze, format json, timing off) {statement}"
        answer = await connection.fetchval(asked, *values)
        await transaction.rollback()
        await connection.close()
        return json.loads(answer)[0]["Plan"]

    plan = asyncio.run(main())
    touched = 0
    for part in parts_of(plan):
        assert part["Node Type"] != "Seq Scan", part
        removed = sum(value for key, value in part.items() if key.startswith("Rows Removed"))
        touched += (part["Actual Rows"] + removed) * part["Actual Loops"]
    assert touched <= ROWS_MAX, plan


def parts_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from parts_of(part)
