"""Values <-> canonical JSON bytes. Never pickle, never type names in data.

What a step returns is what its journal holds: live, too, the handler gets the decoded record, so
a replay cannot differ from the first run (I2). A value's type comes from the function's own
return annotation: plain JSON needs none, dataclasses and pydantic models are read by pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, get_args, get_origin, get_type_hints

import orjson

from durable_endpoints.errors import NotSerializable, PayloadTooLarge
from durable_endpoints.limits import RESULT_BYTES_MAX

_DEPTH_MAX: Final = 200
_PLAIN: Final = frozenset({str, int, float, bool, type(None), Any, dict, list, object})
_SCALARS: Final = frozenset({str, int, bool, type(None)})
_CANONICAL: Final = orjson.OPT_SORT_KEYS


class Codec:
    """Encodes and decodes the results of one function."""

    __slots__ = ("_adapter", "where")

    def __init__(self, where: str, annotation: Any = Any, *, checked: bool = False) -> None:
        """`checked`: have plain types looked at as well, for data from outside."""
        self.where = where
        plain = annotation is Any if checked else is_plain(annotation)
        self._adapter = None if plain else _adapter_for(where, annotation)

    def encode(self, value: Any) -> bytes:
        """Return the value's JSON.

        Raises: NotSerializable, PayloadTooLarge.
        """
        if self._adapter is not None:
            try:
                data: bytes = self._adapter.dump_json(value)
            except Exception as error:
                raise NotSerializable(self.where, "$", str(error)) from error
        else:
            data = dumps(value, self.where)
        if len(data) > RESULT_BYTES_MAX:
            raise PayloadTooLarge(self.where, len(data), RESULT_BYTES_MAX)
        return data

    def decode(self, data: bytes) -> Any:
        """Return the value that `encode` wrote.

        Raises: NotSerializable if the recorded JSON no longer fits the annotation.
        """
        if self._adapter is None:
            return orjson.loads(data)
        try:
            return self._adapter.validate_json(data)
        except Exception as error:
            reason = f"the recorded JSON does not fit the return annotation: {error}"
            raise NotSerializable(self.where, "$", reason) from error

    def record(self, value: Any) -> tuple[bytes, Any]:
        """Return the value's JSON and the value as it will be read back."""
        if self._adapter is not None:
            data = self.encode(value)
            return data, self.decode(data)
        try:
            data = orjson.dumps(value, option=_CANONICAL)
        except (TypeError, RecursionError):
            data = b"null"  # looked at again, for what to say of it
        if data.find(b"null") >= 0 or len(data) > RESULT_BYTES_MAX:  # `in` takes half as long again
            data = self.encode(value)
        return data, value if type(value) in _SCALARS else orjson.loads(data)


def codec_of(where: str, function: Callable[..., Any], *, items: bool = False) -> Codec:
    """Return the codec of a function's result, or of the items that a generator yields."""
    try:
        annotation = get_type_hints(function).get("return", Any)
    except (NameError, TypeError):
        annotation = Any  # names known to type checkers only: treated as plain JSON
    if items:
        arguments = get_args(annotation)
        annotation = arguments[0] if arguments else Any
    return Codec(where, annotation)


def is_plain(annotation: Any) -> bool:
    """Say whether JSON alone brings values of this type back."""
    if annotation in _PLAIN:
        return True
    origin = get_origin(annotation)
    if origin in (list, dict):
        return all(is_plain(argument) for argument in get_args(annotation))
    if getattr(origin, "__name__", "") in ("Union", "UnionType"):
        return all(is_plain(argument) for argument in get_args(annotation))
    return False


def dumps(value: Any, where: str) -> bytes:
    """Return canonical JSON.

    Raises: NotSerializable, which names `where` and the path inside the value.
    """
    try:
        data = orjson.dumps(value, option=_CANONICAL)
    except (TypeError, RecursionError) as error:
        path, reason = find_fault(value) or ("$", str(error))
        raise NotSerializable(where, path, reason) from error
    if b"null" in data:  # orjson writes NaN as null: a silent change, so look for it
        fault = find_fault(value)
        if fault is not None:
            raise NotSerializable(where, *fault)
    return data


def find_fault(value: Any, path: str = "$", depth: int = 0) -> tuple[str, str] | None:
    """Return where a value is not JSON, and why; None if it all is."""
    if depth > _DEPTH_MAX:
        return path, f"nested deeper than {_DEPTH_MAX}"
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"{value} has no JSON form")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return path, f"the key {key!r} is a {type(key).__name__}, not a str"
            if fault := find_fault(item, f"{path}.{key}", depth + 1):
                return fault
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if fault := find_fault(item, f"{path}[{index}]", depth + 1):
                return fault
        return None
    try:
        orjson.dumps(value)
    except (TypeError, RecursionError) as error:
        return path, f"{type(value).__name__}: {error}"
    return None


def _adapter_for(where: str, annotation: Any) -> Any:
    try:
        from pydantic import ConfigDict, TypeAdapter
    except ImportError as error:
        reason = (
            f"its annotation {annotation} is more than JSON and pydantic is not installed: "
            "pip install 'durable-endpoints[types]'"
        )
        raise NotSerializable(where, "$", reason) from error
    config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    try:
        return TypeAdapter(annotation, config=config)
    except Exception:  # noqa: BLE001 - models bring a configuration of their own
        return TypeAdapter(annotation)
