"""Questions put together from what is asked: lists of runs, open waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from durable_endpoints.limits import LIST_ROWS_MAX
from durable_endpoints.states import TRANSITIONS
from durable_endpoints.stores.postgres_rows import ROW, WAIT_ROW, packed
from durable_endpoints.stores.protocol import Query, WaitQuery

# Whom nobody else may take runs from: see claim.sql.
_UNOWNED: Final = (
    "owner = any(array(select node from nodes where lease_until <= now()) || array['', {}::text])"
)


class _Terms:
    """Terms of a `where`, and the values in them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._terms: list[str] = []

    def add(self, term: str, *values: Any) -> None:
        """Add a term; its values stand where it has `{}`."""
        first = len(self.values) + 1
        self.values += values
        self._terms.append(term.format(*(f"${first + i}" for i in range(len(values)))))

    def value(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def __str__(self) -> str:
        return f"where {' and '.join(self._terms)}" if self._terms else ""


# The order of the turns is the index's own: only the rows that are wanted are read.
_QUEUE: Final = (
    f"select {ROW} from runs where concurrency_key = $1 and name = $2"  # noqa: S608
    " and coalesce('p' || principal, '') = coalesce('p' || $3::text, '')"
    " and status in ('running', 'suspended', 'diverged') order by turn limit $4"
)


def list_sql(query: Query, node: str) -> tuple[str, list[Any]]:
    """Return the statement for a list of runs, and its values."""
    if query.concurrency_key is not None:
        place = (packed(query.concurrency_key), packed(query.name), packed(query.principal))
        return _QUEUE, [*place, min(query.limit, LIST_ROWS_MAX)]
    terms = _Terms()
    if query.statuses:
        # Written out, so that the planner sees that a partial index will do.
        assert TRANSITIONS.keys() >= set(query.statuses)
        names = ", ".join(f"'{status}'" for status in query.statuses)
        terms.add(f"status in ({names})")
    for term, value in (
        ("name = {}", packed(query.name)),
        ("principal = {}", packed(query.principal)),
        ("run_id < {}", query.before),
        ("wake_at_ms <= {}", query.due_ms),
        ("parent = {}", query.parent),
    ):
        if value is not None:
            terms.add(term, value)
    if query.labels:
        # All of them as one object; two of one name are no label that a run can have.
        asked = dict(label.split(":", 1) for label in query.labels)
        terms.add("labels is not null and labels::jsonb @> {}::jsonb", orjson.dumps(asked).decode())
        if len(asked) < len(set(query.labels)):
            terms.add("false")
    if query.unowned:
        terms.add(_UNOWNED, node)
    rows = f"select {ROW} from runs {terms}"  # noqa: S608
    few = (query.due_ms, query.parent, query.unowned or None)
    if any(value is not None for value in few):
        # These have an index of their own; without this, a planner that knows no statistics yet
        # would rather walk through all runs in the order that is asked for.
        rows = f"with found as materialized ({rows}) select * from found"  # noqa: S608
    limit = terms.value(min(query.limit, LIST_ROWS_MAX))
    return f"{rows} order by run_id desc limit {limit}", terms.values


def waits_sql(query: WaitQuery, choices: Sequence[tuple[str, str]]) -> tuple[str, list[Any]]:
    """Return the statement for open waits, and its values.

    `choices` are the (fields, match) of those that the query's payload can answer.
    """
    terms = _Terms()
    if query.name is not None:
        terms.add("name = {}", packed(query.name))
    if query.run_id is not None:
        terms.add("run_id = {}", query.run_id)
    if query.kinds:
        terms.add("kind = any({}::text[])", list(query.kinds))
    if not query.any_principal:
        terms.add("principal is not distinct from {}", packed(query.principal))
    if query.payload is not None:
        fields, matches = [f for f, _ in choices], [m for _, m in choices]
        pairs = "select * from unnest({}::text[], {}::text[])"
        terms.add(
            f"(fields, match) in ({pairs})", [packed(f) for f in fields],
            [packed(m) for m in matches],
        )  # fmt: skip
    rest = f"{terms} order by run_id, ident limit {terms.value(min(query.limit, LIST_ROWS_MAX))}"
    return f"select {WAIT_ROW} from waits {rest}", terms.values  # noqa: S608
