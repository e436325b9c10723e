"""Which runs to list: what the store can filter, and what is looked for in its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from durable_endpoints.ids import RUN_ID
from durable_endpoints.labels import asked as labels_asked
from durable_endpoints.labels import terms
from durable_endpoints.limits import (
    LABEL_NAME_CHARS_MAX,
    LABEL_VALUE_CHARS_MAX,
    LIST_ROWS_MAX,
)
from durable_endpoints.records import RunRecord, Status
from durable_endpoints.stores.protocol import Query

if TYPE_CHECKING:
    from durable_endpoints.stores.protocol import Store

PAGE_ROWS: Final = 50
# Rows looked at for one page; further ones are behind a link, so that a page stays quick.
SCAN_ROWS_MAX: Final = 10_000
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
AGES: Final[dict[str, tuple[str, int]]] = {
    "5m": ("5 minutes", 300_000),
    "1h": ("hour", 3_600_000),
    "24h": ("24 hours", 86_400_000),
    "7d": ("7 days", 604_800_000),
}
_CHARS_MAX: Final = 200
_LABEL_CHARS_MAX: Final = LABEL_NAME_CHARS_MAX + 1 + LABEL_VALUE_CHARS_MAX
_STORED_IDS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody looks for. Empty: anything."""

    q: str = ""
    status: str = ""
    name: str = ""
    principal: str = ""
    error: str = ""
    label: str = ""
    age: str = ""
    before: str = ""

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Asked:
        """Read a query string; what is not known in it means anything."""
        found = {name: params.get(name, "")[:_CHARS_MAX].strip() for name in cls.__slots__}
        if found["status"] not in STATUSES:
            found["status"] = ""
        found["label"] = params.get("label", "")[:_LABEL_CHARS_MAX]
        if found["age"] not in AGES:
            found["age"] = ""
        if not RUN_ID.fullmatch(found["before"]):
            found["before"] = ""
        return cls(**found)

    def params(self, **changes: str) -> dict[str, str]:
        """Return the query parameters of this search, some of them changed."""
        fields = {name: str(getattr(self, name)) for name in self.__slots__}
        return {name: value for name, value in {**fields, **changes}.items() if value}

    @property
    def narrow(self) -> bool:
        """Whether rows have to be looked at one by one."""
        return bool(self.q or self.error or "*" in self.name or (self.label and not self.labels))

    @property
    def labels(self) -> tuple[str, ...]:
        """The label that the store can look for, if one is given as `name:value`."""
        try:
            return labels_asked([self.label] if self.label else [])
        except ValueError:
            return ()

    @property
    def any(self) -> bool:
        """Whether anything at all is asked for but a place in the list."""
        return any(getattr(self, name) for name in self.__slots__ if name != "before")

    def fits(self, record: RunRecord) -> bool:
        """Say whether a row is looked for, as far as the store cannot tell."""
        error = (record.error or "").casefold()
        if self.error and self.error.casefold() not in error:
            return False
        labels = " ".join(sorted(terms(record.labels))).casefold()
        if self.label.casefold() not in labels:
            return False
        if "*" in self.name and not _like(record.name, self.name):
            return False
        if not self.q:
            return True
        text = self.q.casefold()
        if len(text) >= _STORED_IDS_MIN and record.run_id.startswith(text):
            return True
        fields = (record.name, record.principal, record.idempotency_key, error, labels)
        return any(text in field.casefold() for field in fields if field)


@dataclass(frozen=True, slots=True)
class Found:
    """A page of runs. `older` is the cursor of the next page; `searched_to` where it gave up."""

    runs: list[RunRecord]
    older: str | None = None
    searched_to: RunRecord | None = None


def floor_id(at_ms: int) -> str:
    """Return the smallest run id that a run begun at this time can have."""
    digits = f"{max(0, at_ms):012x}"
    return f"{digits[:8]}-{digits[8:12]}-7000-8000-000000000000"


async def search(store: Store, asked: Asked, now_ms: int) -> Found:
    """Return the newest runs that fit, from a cursor on."""
    oldest = floor_id(now_ms - AGES[asked.age][1]) if asked.age else ""
    exact = asked.name if asked.name and "*" not in asked.name else None
    statuses: tuple[Status, ...] = tuple(s for s in STATUSES if s == asked.status)
    found: list[RunRecord] = []
    before = asked.before or None
    seen = 0
    while True:
        limit = LIST_ROWS_MAX if asked.narrow else PAGE_ROWS + 1
        query = Query(statuses, exact, asked.principal or None, before, limit, labels=asked.labels)
        rows = await store.list(query)
        for row in rows:
            if row.run_id < oldest:
                return Found(found)
            if asked.fits(row):
                if len(found) == PAGE_ROWS:
                    return Found(found, found[-1].run_id)
                found.append(row)
        seen += len(rows)
        if len(rows) < limit:
            return Found(found)
        before = rows[-1].run_id
        if seen >= SCAN_ROWS_MAX:
            return Found(found, before, rows[-1])
        await asyncio.sleep(0)  # a long search keeps nobody waiting


def _like(name: str, pattern: str) -> bool:
    """Say whether a name has the parts of a pattern, in order; `*` is anything."""
    parts = pattern.casefold().split("*")
    text = name.casefold()
    if not text.startswith(parts[0]):
        return False
    at = len(parts[0])
    for part in parts[1:-1]:
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return text.endswith(parts[-1]) and len(text) - len(parts[-1]) >= at
