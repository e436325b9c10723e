"""What a rate limit is, and the arithmetic of one bucket of it. Pure: time is an argument."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from durable_endpoints.limits import (
    NAME_CHARS_MAX,
    QUOTA_HORIZON_S,
    QUOTA_OWNERS_MAX,
    QUOTA_WAKE_S_MIN,
)

_PERIODS_S: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
# A token less than this short of whole is whole: the sums of refills are floating-point numbers.
_DUST: Final = 1e-6
# What a use is taken to last before one has ended, and how much the last one says from then on.
_HOLD_S: Final = 1.0
_HOLD_SHARE: Final = 0.2
# Multiples of it, modulo 1, are spread evenly however many there are.
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How often a step may begin, and how many may run at a time, over all runs of the process.

    On a store of several nodes, over all runs of all nodes.

    `limit`: how many `per` "second", "minute", "hour" or number of seconds; `burst`: how many at
    once after a rest (default: `limit`, at least 1). `concurrent`: how many at a time. One of
    `limit` and `concurrent` is needed. `key`: what the limit is counted by besides `name`, a text
    or a function of the step's arguments that returns one (such as the tenant), at most 200
    characters. Steps that give the same name and key share one bucket: give them the same values.

    Raises: ValueError for values that make no limit.
    """

    name: str
    limit: float | None = None
    _: KW_ONLY
    per: str | float = "second"
    burst: int | None = None
    key: str | Callable[..., str] | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= NAME_CHARS_MAX:
            raise ValueError(f"a limit's name has 1 to {NAME_CHARS_MAX} characters: {self.name!r}")
        if self.limit is None and self.concurrent is None:
            raise ValueError(f"rate limit {self.name!r}: give limit=, concurrent=, or both")
        if self.limit is not None and not _is_above_0(self.limit):
            raise ValueError(f"limit={self.limit!r}: give a number above 0")
        if isinstance(self.per, str):
            if self.per not in _PERIODS_S:
                raise ValueError(f"per={self.per!r}: give second, minute, hour, or seconds")
        elif not _is_above_0(self.per):
            raise ValueError(f"per={self.per!r}: give seconds above 0")
        for name in ("burst", "concurrent"):
            value = getattr(self, name)
            if value is not None and not (_is_above_0(value) and isinstance(value, int)):
                raise ValueError(f"{name}={value!r}: give a whole number from 1 on")
        if self.burst is not None and self.limit is None:
            raise ValueError(f"burst={self.burst!r}: it needs limit=")
        if isinstance(self.key, str):
            _check_key(self.key)

    @property
    def rate(self) -> float | None:
        """Tokens a second."""
        if self.limit is None:
            return None
        return self.limit / (_PERIODS_S[self.per] if isinstance(self.per, str) else self.per)

    @property
    def capacity(self) -> float:
        """Tokens of a full bucket."""
        return float(self.burst or max(1.0, self.limit or 1.0))

    def key_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the key for a call of the step.

        Raises: ValueError if the function given as `key` returns no short text; what it raises.
        """
        if callable(self.key):
            return _check_key(self.key(*args, **kwargs))
        return self.key or ""


def _check_key(key: object) -> str:
    if not isinstance(key, str) or len(key) > NAME_CHARS_MAX:
        raise ValueError(f"a limit's key is a text of at most {NAME_CHARS_MAX} characters: {key!r}")
    return key


def _is_above_0(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < math.inf


class Bucket:
    """The tokens, the uses and the promises of one name and key. All times in seconds."""

    __slots__ = (
        "beyond", "capacity", "concurrent", "firsts_s", "from_s", "hold_s", "last_s", "pause_end_s",
        "promised", "rate", "starts", "tokens",
    )  # fmt: skip

    def __init__(self, now_s: float) -> None:
        self.rate: float | None = None
        self.capacity = 1.0
        self.concurrent: int | None = None
        self.tokens = math.inf  # full, whatever that will be
        self.from_s = now_s  # the time that `tokens` is the state of
        self.pause_end_s = now_s
        self.starts: list[float] = []  # when the uses that go on began
        self.hold_s = _HOLD_S
        # When callers were told to come back: the last of each owner, the last of all owners'
        # first ones, the last of all.
        self.promised: OrderedDict[str, float] = OrderedDict()
        self.firsts_s = self.last_s = now_s
        self.beyond = 0  # how many were promised a time that was cut to the horizon

    def refill(self, limit: RateLimit, now_s: float) -> None:
        """Bring the tokens up to date; the limit that was given last counts."""
        self.rate, self.capacity, self.concurrent = limit.rate, limit.capacity, limit.concurrent
        self.advance(now_s)

    def advance(self, now_s: float) -> None:
        """Add the tokens of the time since the last call."""
        if now_s > self.from_s:
            if self.rate is not None:
                self.tokens += (now_s - self.from_s) * self.rate
            self.from_s = now_s
        self.tokens = min(self.tokens, self.capacity)

    def may_take(self, now_s: float) -> bool:
        """Tell whether one more may begin now."""
        if now_s < self.pause_end_s or (self.rate is not None and self.tokens < 1 - _DUST):
            return False
        return self.concurrent is None or len(self.starts) < self.concurrent

    def take(self, now_s: float) -> None:
        """Let one more begin."""
        if self.rate is not None:
            self.tokens -= 1
        if self.concurrent is not None:
            self.starts.append(now_s)

    def untake(self) -> None:
        """Take back the last `take`: nothing began."""
        if self.rate is not None:
            self.tokens = min(self.tokens + 1, self.capacity)
        if self.concurrent is not None:
            self.starts.pop()

    def end(self, now_s: float) -> None:
        """Note that a use has ended; which one does not matter to the mean."""
        self.hold_s += _HOLD_SHARE * (now_s - self.starts.pop(0) - self.hold_s)

    def pause(self, now_s: float, pause_s: float) -> None:
        """Let nothing begin for a while; then one, and the others at the limit's rate."""
        self.advance(now_s)
        self.pause_end_s = max(self.pause_end_s, now_s + pause_s)
        if self.rate is not None:
            self.tokens += (self.pause_end_s - self.from_s) * self.rate
        self.tokens, self.from_s = min(self.tokens, 1.0), self.pause_end_s

    def is_at_rest(self, now_s: float) -> bool:
        """Tell whether the bucket is as good as a new one."""
        if self.starts or now_s < self.pause_end_s or now_s < self.last_s:
            return False
        self.advance(now_s)
        return self.rate is None or self.tokens >= self.capacity - _DUST

    def earliest_s(self, now_s: float, ahead: int) -> float:
        """Return the time before which one with so many ahead surely may not begin."""
        at_s = max(now_s, self.pause_end_s)
        if self.rate is not None and self.tokens < ahead + 1 - _DUST:
            at_s = max(at_s, self.from_s + (ahead + 1 - self.tokens) / self.rate)
        return at_s

    def interval_s(self) -> float:
        """Return the mean time between two that begin, in a bucket that is never at rest."""
        by_rate = 0.0 if self.rate is None else 1 / self.rate
        by_uses = 0.0 if self.concurrent is None else max(self.hold_s, 0.0) / self.concurrent
        return max(by_rate, by_uses)

    def promise(self, owner: str, ahead: int, now_s: float) -> float:
        """Return the seconds after which it is worth asking again; always above 0.

        Callers are spread, so that they do not come all at once: the first of each owner at the
        limit's own pace, the next ones of an owner at that pace times the owners that were put
        off, so that an owner's thousand are not before another's first. `ahead`: how many wait in
        memory and will be served before.
        """
        interval_s = max(self.interval_s(), QUOTA_WAKE_S_MIN)
        base_s = max(self.earliest_s(now_s, ahead), now_s + QUOTA_WAKE_S_MIN)
        if self.concurrent is not None and len(self.starts) >= self.concurrent:
            base_s = max(base_s, now_s + (ahead + 1) * interval_s)
        self._forget_promises(now_s)
        last_s = self.promised.get(owner, now_s)
        is_first = last_s <= now_s
        after_s = self.firsts_s if is_first else last_s
        at_s = max(base_s, after_s + interval_s * (1 if is_first else len(self.promised)))
        if at_s > base_s + QUOTA_HORIZON_S:
            self.beyond += 1
            at_s = base_s + QUOTA_HORIZON_S * (1 + self.beyond * _GOLDEN % 1) / 2
        else:
            if is_first:
                self.firsts_s = at_s
            if owner in self.promised or len(self.promised) < QUOTA_OWNERS_MAX:
                self.promised[owner] = at_s
        self.last_s = max(self.last_s, at_s)
        return at_s - now_s

    def _forget_promises(self, now_s: float) -> None:
        """Look at two owners at each promise: enough to forget faster than they come."""
        for _ in range(min(2, len(self.promised))):
            owner, at_s = self.promised.popitem(last=False)
            if at_s > now_s:
                self.promised[owner] = at_s
