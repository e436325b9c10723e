"""Labels of runs: short texts by name, to find runs by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import orjson

from durable_endpoints.limits import LABEL_NAME_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX
from durable_endpoints.redact import is_secret

Value: TypeAlias = str | float | bool
NONE: Final = "{}"


def merged(known: str | None, changes: Mapping[str, Value | None]) -> str:
    """Return a run's labels after some changes, as JSON; `known` is what they were.

    None takes a label away. Numbers and booleans become their JSON text.

    Raises: TypeError, ValueError for what cannot be a label.
    """
    labels = parsed(known)
    for name, value in changes.items():
        _check_name(name)
        if value is None:
            labels.pop(name, None)
        else:
            labels[name] = _text(name, value)
    if len(labels) > LABELS_MAX:
        raise ValueError(f"a run has at most {LABELS_MAX} labels; these are {len(labels)}")
    return orjson.dumps(labels, option=orjson.OPT_SORT_KEYS).decode()


def parsed(labels: str | None) -> dict[str, str]:
    """Return labels from their JSON."""
    found: dict[str, str] = orjson.loads(labels) if labels else {}
    return found


def terms(labels: str | None) -> set[str]:
    """Return each label as one text, `name:value`. No name has a colon."""
    return {f"{name}:{value}" for name, value in parsed(labels).items()}


def asked(given: Iterable[str]) -> tuple[str, ...]:
    """Return the labels that somebody looks for, each given as `name:value`, once each.

    Raises: ValueError if one is nothing of the kind, or there are more than a run can have.
    """
    found = tuple(dict.fromkeys(given))
    for text in found:
        name, colon, _ = text.partition(":")
        if not (name and colon) or not _is_plain(text):
            raise ValueError(f"give a label as name:value, such as tenant:acme, not {text!r}")
    if len(found) > LABELS_MAX:
        raise ValueError(f"a run has at most {LABELS_MAX} labels; these are {len(found)}")
    return found


def _check_name(name: str) -> None:
    if not 0 < len(name) <= LABEL_NAME_CHARS_MAX or ":" in name or not _is_plain(name):
        raise ValueError(
            f"a label's name has 1 to {LABEL_NAME_CHARS_MAX} printable characters and no colon: "
            f"{name!r}"
        )
    if is_secret(name):
        raise ValueError(f"labels are stored and shown as they are: {name!r} names a secret")


def _text(name: str, value: Value) -> str:
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    if not isinstance(value, str):
        raise TypeError(f"label {name}: give text, a number or a boolean, not {value!r}")
    if len(value) > LABEL_VALUE_CHARS_MAX or not _is_plain(value):
        raise ValueError(
            f"label {name}: a value has at most {LABEL_VALUE_CHARS_MAX} printable characters: "
            f"{value[:LABEL_VALUE_CHARS_MAX]!r}"
        )
    return value


def _is_plain(text: str) -> bool:
    """Say whether a text has no control characters, and a form in UTF-8."""
    return all(c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff" for c in text)
