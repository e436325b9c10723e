"""Journals as JSON that people can read, and back, byte for byte."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from durable_endpoints.records import Entry, Kind

Exported = Mapping[str, Any]


def export(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return entries as JSON values; what is empty is left out."""
    return [_exported(entry) for entry in entries]


def _exported(entry: Entry) -> dict[str, Any]:
    fields: dict[str, Any] = {"seq": entry.seq, "kind": entry.kind.name.lower()}
    if entry.key:
        fields["key"] = entry.key
    if entry.check:
        fields["check"] = entry.check
    fields["at_ms"] = entry.at_ms
    if entry.took_us:
        fields["took_us"] = entry.took_us
    for name, data in (("args", entry.args), ("payload", entry.payload)):
        if data:
            fields[name] = _readable(data)
    return fields


def _readable(data: bytes) -> dict[str, Any]:
    """Return bytes as JSON if that gives them back exactly, else as text, else in base64."""
    try:
        value = orjson.loads(data)
        if orjson.dumps(value) == data:
            return {"json": value}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def imported(entries: Iterable[Entry | Exported]) -> list[Entry]:
    """Return entries, exported ones or plain ones, as a journal.

    Raises: ValueError if they are no journal from its beginning on.
    """
    found = [entry if isinstance(entry, Entry) else _imported(entry) for entry in entries]
    if not found or found[0].kind != Kind.STARTED:
        raise ValueError("a journal begins with its entry `started`")
    for seq, entry in enumerate(found):
        if entry.seq != seq:
            raise ValueError(f"entry {seq} of the journal is missing: found {entry.seq}")
    return found


def _imported(fields: Exported) -> Entry:
    try:
        return Entry(
            int(fields["seq"]), Kind[str(fields["kind"]).upper()], str(fields.get("key", "")),
            int(fields.get("check", 0)), int(fields.get("at_ms", 0)),
            int(fields.get("took_us", 0)), _bytes(fields.get("args")),
            _bytes(fields.get("payload")),
        )  # fmt: skip
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"{dict(fields)!r} is no exported journal entry") from error


def _bytes(data: Exported | None) -> bytes:
    if data is None:
        return b""
    if "json" in data:
        return orjson.dumps(data["json"])
    if "text" in data:
        return str(data["text"]).encode()
    return base64.b64decode(data["base64"], validate=True)
