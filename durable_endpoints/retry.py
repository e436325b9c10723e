"""Retry policies: which failures deserve another attempt, and when it may begin.

Pure: time and chance are arguments. Errors of HTTP clients and model providers are told by
what they carry (a status, a response, headers) and by the names of their classes, so that no
client library is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from durable_endpoints.errors import (
    Escalate,
    NonRetryableError,
    NotSerializable,
    PayloadTooLarge,
    RetryAfter,
)
from durable_endpoints.hints import delay_hint, headers_of, is_whole, leaves, status_of

__all__ = ["On", "Retry", "Rule", "Verdict", "classify", "delay_hint", "next_delay"]

Verdict: TypeAlias = Literal["retry", "fatal", "escalate"]
Rule: TypeAlias = Callable[[BaseException], "bool | Verdict | None"]
On: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Rule | None"

_VERDICTS: Final = ("retry", "fatal", "escalate")

# 408 and 425 ask for the request again, 429 asks for it later. All from 500 on is the server's
# own trouble (529: overloaded, as Anthropic says it). Every other 4xx will be the same again.
_RETRY_STATUSES: Final = frozenset((408, 425, 429))

# Errors in the code: they will be the same again. KeyError and IndexError are LookupErrors.
_FATAL: Final = (
    NonRetryableError, NotSerializable, PayloadTooLarge,
    TypeError, NameError, AttributeError, LookupError, AssertionError, ImportError, SyntaxError,
    NotImplementedError, ArithmeticError, RecursionError,
)  # fmt: skip

# Classes of libraries that may or may not be there, as (top package, class name). A class
# counts as what its nearest named ancestor counts as.
_NAMED: Final[Mapping[tuple[str, str], Verdict]] = {
    # These say that the URL or the request is wrong; some derive from the transport errors.
    ("httpx", "UnsupportedProtocol"): "fatal",
    ("httpx", "LocalProtocolError"): "fatal",
    ("httpx", "InvalidURL"): "fatal",
    ("httpx2", "UnsupportedProtocol"): "fatal",
    ("httpx2", "LocalProtocolError"): "fatal",
    ("httpx2", "InvalidURL"): "fatal",
    ("aiohttp", "InvalidURL"): "fatal",
    ("requests", "InvalidURL"): "fatal",
    ("requests", "InvalidSchema"): "fatal",
    ("requests", "InvalidHeader"): "fatal",
    ("requests", "MissingSchema"): "fatal",
    # These say that the network failed.
    ("httpx", "TransportError"): "retry",
    ("httpx2", "TransportError"): "retry",
    ("aiohttp", "ClientConnectionError"): "retry",
    ("aiohttp", "ClientPayloadError"): "retry",
    ("requests", "ConnectionError"): "retry",
    ("requests", "Timeout"): "retry",
    ("requests", "ChunkedEncodingError"): "retry",
    ("openai", "APIConnectionError"): "retry",
    ("openai", "APITimeoutError"): "retry",
    ("anthropic", "APIConnectionError"): "retry",
    ("anthropic", "APITimeoutError"): "retry",
}


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a failed step is attempted again.

    `attempts`: how many in all, the first one included; None: for ever. `initial`, `factor`,
    `maximum`: the n-th wait is initial * factor ** (n - 1) seconds, at most `maximum`, then
    spread by `jitter` (0.25: from 75 % to 125 % of it). A wait that the other side asks for
    (`Retry-After`) is kept if it is longer. `deadline`: seconds from the beginning of the first
    attempt after which none begins. `on`: the exception class or classes that are worth another
    attempt (all others then end the step), or a function of the error that returns True or
    "retry", False or "fatal", "escalate", or None for the default rule (see `classify`).

    Raises: ValueError for values that make no policy.
    """

    attempts: int | None = 3
    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.25
    on: On = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        attempts = self.attempts
        if attempts is not None and not (is_whole(attempts) and attempts >= 1):
            raise ValueError(
                f"attempts={attempts!r}: give a whole number from 1 on, or None for no end"
            )
        for name, least in (("initial", 0.0), ("factor", 1.0), ("maximum", 0.0), ("jitter", 0.0)):
            value = getattr(self, name)
            if not (_is_finite(value) and value >= least):
                raise ValueError(f"{name}={value!r}: give a number from {least:g} on")
        if self.jitter > 1:
            raise ValueError(f"jitter={self.jitter!r}: give a fraction from 0 to 1")
        if self.deadline is not None and not (_is_finite(self.deadline) and self.deadline > 0):
            raise ValueError(f"deadline={self.deadline!r}: give seconds above 0, or None")
        _check_on(self.on)


def _check_on(on: object) -> None:
    if on is None or _is_error_class(on):
        return
    if isinstance(on, tuple):
        if on and all(_is_error_class(kind) for kind in on):
            return
    elif callable(on) and not isinstance(on, type):
        return
    raise ValueError(
        f"on={on!r}: give an exception class, a tuple of them, or a function of the error"
    )


def _is_error_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def classify(error: BaseException, on: On = None) -> Verdict:
    """Return whether a failed attempt is worth another one.

    What the code says outright comes first: `Escalate`, `NonRetryableError`, `RetryAfter`. Then
    `on` (see `Retry`), the header `x-should-retry`, the HTTP status, the kind of the error.
    What nothing is known of is retried. An exception group is as its members are: one that
    escalates, or else one that is fatal, decides.

    Raises: ValueError if `on` returns something else than a verdict; what `on` itself raises.
    """
    if isinstance(on, type | tuple) and isinstance(error, on):
        return _announced(error) or "retry"
    verdicts = {_classify_one(leaf, on) for leaf in leaves(error)}
    if "escalate" in verdicts:
        return "escalate"
    return "fatal" if "fatal" in verdicts else "retry"


def _announced(error: BaseException) -> Verdict | None:
    if isinstance(error, Escalate):
        return "escalate"
    if isinstance(error, NonRetryableError):
        return "fatal"
    return "retry" if isinstance(error, RetryAfter) else None


def _classify_one(error: BaseException, on: On) -> Verdict:
    verdict = _announced(error) or _asked(error, on) or _by_response(error)
    if verdict is not None:
        return verdict
    for kind in type(error).__mro__:
        known = _NAMED.get((kind.__module__.partition(".")[0], kind.__name__))
        if known is not None:
            return known
    if isinstance(error, ConnectionError | TimeoutError):
        return "retry"
    if isinstance(error, _FATAL) or not isinstance(error, Exception):
        return "fatal"
    return "retry"


def _asked(error: BaseException, on: On) -> Verdict | None:
    """Return what the policy's own rule says."""
    if on is None:
        return None
    if isinstance(on, type | tuple):
        return "retry" if isinstance(error, on) else "fatal"
    answer = on(error)
    if answer is None:
        return None
    if answer is True or answer is False:
        return "retry" if answer else "fatal"
    if answer not in _VERDICTS:
        raise ValueError(
            f"the function given as on= returned {answer!r}: "
            "return True, False, None, 'retry', 'fatal' or 'escalate'"
        )
    return answer


def _by_response(error: BaseException) -> Verdict | None:
    """Return what the answer of an HTTP server says, if the error carries one."""
    wish = headers_of(error).get("x-should-retry", "").strip().lower()
    if wish in ("true", "false"):
        return "retry" if wish == "true" else "fatal"
    status = status_of(error)
    if status is None or status < 400:
        return None
    return "retry" if status >= 500 or status in _RETRY_STATUSES else "fatal"


def next_delay(
    retry: Retry, failed: int, error: BaseException, now_s: float, began_s: float, chance: float
) -> float | None:
    """Return the seconds to wait before the next attempt; None if the budget is over.

    `failed` attempts (at least 1) have failed, the last one with `error`. `now_s` and `began_s`
    (when the first attempt began) are wall-clock times in seconds, `chance` is from [0, 1).
    Whether `error` is worth another attempt at all is not looked at: see `classify`.
    """
    if retry.attempts is not None and failed >= retry.attempts:
        return None
    delay = _backoff(retry, failed) * (1 + retry.jitter * (2 * chance - 1))
    hint = delay_hint(error, now_s)
    if hint is not None and hint > delay:
        delay = hint
    # A clock that was put back: time before the first attempt is no credit.
    elapsed_s = max(0.0, now_s - began_s)
    if retry.deadline is not None and elapsed_s + delay >= retry.deadline:
        return None
    return delay


def _backoff(retry: Retry, failed: int) -> float:
    try:
        return min(retry.initial * retry.factor ** (failed - 1), retry.maximum)
    except OverflowError:  # beyond every float, hence beyond the maximum
        return retry.maximum if retry.initial > 0 else 0.0
