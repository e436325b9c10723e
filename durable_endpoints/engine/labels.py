"""Labels that a handler puts on its run: journalled, and in the run's row with the same commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from zlib import crc32

import orjson

from durable_endpoints.labels import NONE, Value, merged
from durable_endpoints.records import Entry, Kind

if TYPE_CHECKING:
    from durable_endpoints.engine.scope import Scope


class Labelling:
    """What one going of a handler has said of its run's labels.

    A call is known by what it says, and how often its task has said that: so calls may come and
    go with the code, and those that are recorded stay as they are.
    """

    __slots__ = ("_calls", "_recorded", "changed", "now")

    def __init__(self, now: str | None, recorded: Iterable[str] = ()) -> None:
        self.now = now
        self.changed = False  # and to be written with the run's next frame
        self._recorded = frozenset(recorded)
        self._calls: dict[str, int] = {}

    def call(self, path: str, changes: Mapping[str, Value | None]) -> str | None:
        """Return the key of a call; None if it is recorded."""
        said = crc32(orjson.dumps(dict(changes), option=orjson.OPT_SORT_KEYS))
        ident = f"{path}l{said:08x}"
        number = self._calls[ident] = self._calls.get(ident, 0) + 1
        key = f"{ident}.{number} label"
        return None if key in self._recorded else key

    def take(self) -> str | None:
        """Return the labels to be written, if they have changed."""
        changed, self.changed = self.changed, False
        return self.now if changed else None


def label(scope: Scope, changes: Mapping[str, Value | None]) -> None:
    """Change the labels of a run, unless that is recorded already. On the loop's thread.

    Raises: ValueError, TypeError for what cannot be a label; Fenced.
    """
    scope.check_life()
    run = scope.run
    known = run.life.labelling
    if known is None:
        known = run.life.labelling = Labelling(run.record.labels)
    after = merged(known.now, changes)
    key = known.call(scope.path, changes)
    if key is not None:
        run.append(Kind.LABEL, key.encode(), after.encode())
        known.now, known.changed = after, True


def labels_of(entries: Iterable[Entry]) -> str | None:
    """Return the labels that a run had at the end of these entries, its first ones."""
    found = None
    for entry in entries:
        if entry.kind == Kind.LABEL:
            found = entry.payload.decode()
    return None if found == NONE else found
