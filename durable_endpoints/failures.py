"""Exceptions of steps <-> JSON, so that a handler meets the same error live and at replay.

An exception is rebuilt without running its `__init__`: its class is looked up among the modules
already loaded, its arguments and attributes are those that have a JSON form. What has none is
lost, live too: look at it inside the step. A class that cannot be found becomes `StepFailed`.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import orjson

from durable_endpoints.errors import StepFailed, StreamInterrupted

_MESSAGE_CHARS_MAX: Final = 4096
_FIELD_BYTES_MAX: Final = 8192


def dump(error: BaseException) -> bytes:
    """Return the JSON of an exception."""
    kind = type(error)
    fields = {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("__") and _is_small_json(value)
    }
    args = list(error.args)
    return orjson.dumps(
        {
            "type": f"{kind.__module__}:{kind.__qualname__}",
            "message": plain(str(error))[:_MESSAGE_CHARS_MAX],
            "args": args if _is_small_json(args) else None,
            "fields": fields,
        }
    )


def plain(text: str) -> str:
    """Return a text that UTF-8 can hold: lone surrogates, which models do emit, become `?`."""
    return text.encode("utf-8", "replace").decode()


def load(step: str, data: bytes) -> Exception:
    """Return the exception that `dump` wrote, as the handler of `step` is to meet it."""
    stored: dict[str, Any] = orjson.loads(data)
    kind = _find(stored["type"])
    if kind is None or issubclass(kind, StreamInterrupted):
        name = stored["type"].rpartition(":")[2]
        return StepFailed(step, name, stored["message"])
    try:
        error: Exception = kind.__new__(kind)
    except TypeError:  # a class that only its own module can make
        return StepFailed(step, kind.__qualname__, stored["message"])
    args = stored["args"]
    error.args = tuple(args) if args is not None else (stored["message"],)
    for name, value in stored["fields"].items():
        try:
            setattr(error, name, value)
        except AttributeError:
            continue  # a read-only property computes itself
    return error


def _find(name: str) -> type[Exception] | None:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _is_small_json(value: object) -> bool:
    try:
        return len(orjson.dumps(value)) <= _FIELD_BYTES_MAX
    except (TypeError, RecursionError):
        return False
