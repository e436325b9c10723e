"""A regression test, as text, from a run's journal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from durable_endpoints.records import RunRecord
from durable_endpoints.testing.exported import Exported

_TEST = '''"""{name}, as it {status} on {day}: replayed against today's code.

Written by `durable export`. Recorded steps return what they returned then; no step, effect or
wait begins. It fails when the handler calls other steps, gives them other arguments, or answers
something else. Was that meant? Then export a newer run in its place.
"""

import asyncio
import json

from durable_endpoints.testing import replay
from {module} import {top}

RUN = "{run_id}"
JOURNAL = json.loads(
    r\'\'\'
{journal}
\'\'\'
)


def test_{test}() -> None:
    replayed = asyncio.run(replay({app}, JOURNAL, run_id=RUN{more}))
    assert replayed.ok, replayed.difference
'''


def test_of(
    record: RunRecord, journal: Sequence[Exported], app: str, *, factory: bool, lifespan: bool
) -> str:
    """Return the text of a pytest file that replays a journal against `app` (`module:name`)."""
    module, _, attribute = app.partition(":")
    shown = f"{attribute}()" if factory else attribute
    day = datetime.fromtimestamp(record.created_at_ms / 1000, UTC).date().isoformat()
    slug = re.sub(r"[^a-z0-9]+", "_", record.name.lower()).strip("_") or "run"
    return _TEST.format(
        name=_inert(json.dumps(record.name)[1:-1]).replace('"', "'"),
        status=record.status if record.status != "running" else "was",
        day=day, run_id=record.run_id, module=module, top=attribute.partition(".")[0],
        journal=_journal(journal), test=f"{slug}_{record.run_id[-6:]}", app=shown,
        more="" if lifespan else ", lifespan=False",
    )  # fmt: skip


test_of.__test__ = False  # type: ignore[attr-defined]  # for pytest: no test


def _journal(entries: Sequence[Exported]) -> str:
    """Return a journal as JSON, an entry a line, fit for a raw string in source code."""
    lines = (_line(entry) for entry in entries)
    return "[\n" + ",\n".join(lines) + "\n]"


def _line(entry: Any) -> str:
    # JSON itself has no single quote outside of its strings.
    return _inert(json.dumps(entry, ensure_ascii=False).replace("'", "\\u0027"))


def _inert(text: str) -> str:
    """Escape what an editor would not show, or would show turned around, as JSON does."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
