"""What errors of HTTP clients and model providers tell: a status, headers, a time to wait.

Pure. The errors are told by what they carry, so that no client library is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from durable_endpoints.errors import RetryAfter
from durable_endpoints.limits import RETRY_HINT_S_MAX

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?")
_DURATION: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?(?:ms|us|µs|ns|d|h|m|s))+")
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ms|us|µs|ns|d|h|m|s)")
_UNIT_S: Final = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_ANTHROPIC: Final = "anthropic-ratelimit-"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside a group, or the error itself."""
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(reversed(current.exceptions))
        else:
            yield current


def is_whole(value: object) -> bool:
    """Tell whether a value is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _peek(thing: object, name: str) -> Any:
    """Return an attribute of a foreign object; None if it has none."""
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a property that raises tells us nothing
        return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries."""
    response = _peek(error, "response")
    places = [(error, "status_code"), (error, "status")]
    if _is_http_like(error):
        places.append((error, "code"))
    places += [(response, "status_code"), (response, "status")]
    for thing, name in places:
        value = _peek(thing, name)
        if is_whole(value) and 100 <= value <= 599:
            return int(value)
    return None


def _is_http_like(error: BaseException) -> bool:
    """Tell whether `code` is a status: exit codes and database errors have a `code` too."""
    if _peek(error, "response") is not None or _peek(error, "headers") is not None:
        return True
    return any("http" in kind.__name__.lower() for kind in type(error).__mro__)


def headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers that an error carries, by lower-case name."""
    found: dict[str, str] = {}
    for headers in (_peek(error, "headers"), _peek(_peek(error, "response"), "headers")):
        items = _peek(headers, "items")
        if not callable(items):
            continue
        for name, value in items():
            found[_text(name).lower()] = _text(value)
    return found


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def delay_hint(error: BaseException, now_s: float) -> float | None:
    """Return the seconds that the other side asks to wait, from 0 to a day; None if it does not.

    `now_s` is the wall-clock time in seconds since 1970 UTC. Looked at, in this order:
    `RetryAfter`, the headers `retry-after-ms` and `Retry-After`, and the reset times that OpenAI
    and Anthropic send, of those quotas of which nothing remains. What makes no sense is left out.
    """
    hints = [hint for leaf in leaves(error) if (hint := _hint(leaf, now_s)) is not None]
    return min(max(*hints, 0.0), RETRY_HINT_S_MAX) if hints else None


def _hint(error: BaseException, now_s: float) -> float | None:
    if isinstance(error, RetryAfter):
        return error.seconds if error.at_s is None else error.at_s - now_s
    headers = headers_of(error)
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    asked = headers.get("retry-after")
    for parsed in (_number(asked), _until(_http_date(asked), now_s)):
        if parsed is not None:
            return parsed
    waits = [wait for wait in _resets(headers, now_s) if wait is not None]
    return max(waits) if waits else None


def _resets(headers: Mapping[str, str], now_s: float) -> Iterator[float | None]:
    """Yield when the used-up quotas are refilled."""
    for what in ("requests", "tokens"):
        if _is_used_up(headers.get(f"x-ratelimit-remaining-{what}")):
            yield _duration(headers.get(f"x-ratelimit-reset-{what}"))
    for name, value in headers.items():
        if name.startswith(_ANTHROPIC) and name.endswith("-reset"):
            stem = name.removesuffix("-reset")
            if _is_used_up(headers.get(f"{stem}-remaining")):
                yield _until(_rfc3339(value), now_s)


def _is_used_up(remaining: str | None) -> bool:
    number = _number(remaining)
    return number is not None and number <= 0


def _number(text: str | None) -> float | None:
    """Read a decimal number; `float` would take "nan", "1_0" and digits of other scripts too."""
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    return float(text)


def _duration(text: str | None) -> float | None:
    """Read a duration such as "1s", "6m0s" or "120ms", as Go writes it."""
    if text is None or not _DURATION.fullmatch(text.strip()):
        return None
    return sum(float(amount) * _UNIT_S[unit] for amount, unit in _DURATION_PART.findall(text))


def _http_date(text: str | None) -> datetime | None:
    """Read one of the three forms of RFC 9110, 5.6.7; the two without a zone are in UTC."""
    if text is None:
        return None
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _rfc3339(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return when if when.tzinfo is not None else None


def _until(when: datetime | None, now_s: float) -> float | None:
    return None if when is None else when.timestamp() - now_s
