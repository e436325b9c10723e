"""Rate limits shared by all runs of a process: token buckets, dealt fairly among owners.

In memory only: a restart begins with full buckets. Where there are other nodes, the buckets are
theirs, too, and this process deals what it was lent of them. All calls on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeAlias

from durable_endpoints.buckets import Bucket, RateLimit
from durable_endpoints.clock import Clock
from durable_endpoints.errors import StoreError
from durable_endpoints.lent import Demand, Lender, Lent
from durable_endpoints.limits import (
    QUOTA_BUCKETS_MAX,
    QUOTA_KEPT_S,
    QUOTA_WAITERS_MAX,
    QUOTA_WAKE_S_MIN,
)

__all__ = ["Quotas", "RateLimit"]

# Buckets looked at when a new one is made: enough to forget faster than they come.
_LOOKED_AT: Final = 4
_FULL_S: Final = 1.0
# A timer may fire a little early; it must not fire a thousand times instead.
_TIMER_S_MIN: Final = 0.001

# What a caller waits for; done when it was dealt.
_Waiter: TypeAlias = "asyncio.Future[None]"
Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]
logger = logging.getLogger("durable_endpoints")


class _Queue:
    """Who waits in memory for a bucket: by owner, the next one to be served first."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()
        self.count = 0
        self.timer: asyncio.TimerHandle | None = None

    def ahead_of(self, owner: str) -> int:
        """Return how many of those waiting at least will be served before one more of `owner`."""
        own = self.waiting.get(owner)
        return len(self.waiting) if own is None else len(self.waiting) - 1 + len(own)

    def join(self, owner: str, waiter: _Waiter) -> None:
        """Put a caller behind its owner's others, or a new owner behind the other owners."""
        self.waiting.setdefault(owner, OrderedDict())[waiter] = None
        self.count += 1

    def leave(self, owner: str, waiter: _Waiter) -> None:
        """Forget a caller that was not served."""
        own = self.waiting[owner]
        del own[waiter]
        if not own:
            del self.waiting[owner]
        self.count -= 1

    def next_waiter(self) -> _Waiter:
        """Return the caller to serve now; its owner's next one comes after all other owners."""
        owner, own = self.waiting.popitem(last=False)
        waiter, _ = own.popitem(last=False)
        if own:
            self.waiting[owner] = own
        self.count -= 1
        return waiter


class _Own(_Queue, Bucket):
    """A bucket of this process alone."""

    def __init__(self, now_s: float) -> None:
        Bucket.__init__(self, now_s)
        _Queue.__init__(self)

    def wake_s(self, now_s: float) -> float:
        """Return when to look again for those who wait; not in the future: when a use ends."""
        return self.earliest_s(now_s, ahead=0)


class _Borrowed(_Queue, Lent):
    """What this process has of a bucket of all nodes."""

    def __init__(self, now_s: float, place: tuple[str, str]) -> None:
        Lent.__init__(self, now_s)
        _Queue.__init__(self)
        self.place = place
        self.tidying = False

    def wake_s(self, now_s: float) -> float:
        """Return when to look again for those who wait; not in the future: when told."""
        return self.next_look_s(now_s, self.count)


_Shared: TypeAlias = _Own | _Borrowed


class Quotas:
    """The buckets of a process."""

    def __init__(self, clock: Clock) -> None:
        self._now_s = clock.monotonic_s
        self._buckets: OrderedDict[tuple[str, str], _Shared] = OrderedDict()
        self._full_s = -math.inf
        self._lender: Lender | None = None
        self._spawn: Spawn | None = None

    def share(self, lender: Lender, spawn: Spawn) -> None:
        """From now on share all buckets with other nodes. `spawn` runs what asks the lender."""
        self._lender, self._spawn = lender, spawn
        self._buckets.clear()

    def __len__(self) -> int:
        return len(self._buckets)

    def try_take(self, limit: RateLimit, key: str, owner: str) -> float:
        """Take one if that is possible at once: 0.0 if so, else when to ask again.

        That is in so many seconds, above 0; callers get different times. `owner`: whose the call
        is, such as the principal. What was taken of a limit with `concurrent` is to be given back.
        """
        bucket = self._bucket(limit, key)
        if bucket is None:
            return self._refuse()
        if self._took(bucket):
            return 0.0
        if isinstance(bucket, _Borrowed):
            self._ask(bucket, more=1)  # it may be there when it is asked for again
        return self._promise(bucket, owner)

    async def take(self, limit: RateLimit, key: str, owner: str, patience_s: float) -> float:
        """Take one, waiting in memory for at most `patience_s`: 0.0 if it was taken.

        Else when to ask again, as `try_take` says it; at once if waiting would surely be in
        vain. Each token goes to the owner that has waited longest since it was last served; within
        an owner, first come, first served. A caller that is cancelled has taken nothing.
        """
        bucket = self._bucket(limit, key)
        if bucket is None:
            return self._refuse()
        if self._took(bucket):
            return 0.0
        if bucket.count >= QUOTA_WAITERS_MAX or self._in_vain(bucket, owner, patience_s):
            return self._promise(bucket, owner)
        waiter = asyncio.get_running_loop().create_future()
        bucket.join(owner, waiter)
        self._arm(bucket)
        taken = False
        try:
            await asyncio.wait((waiter,), timeout=patience_s)
            taken = waiter.done()
        finally:
            if not taken:
                self._withdraw(bucket, owner, waiter)
        return 0.0 if taken else self._promise(bucket, owner)

    def give_back(self, limit: RateLimit, key: str) -> None:
        """End a use that was taken; nothing to do for a limit without `concurrent`.

        Raises: RuntimeError if none is out.
        """
        if limit.concurrent is None:
            return
        bucket = self._buckets.get((limit.name, key))
        if bucket is None or not bucket.starts:
            raise RuntimeError(f"rate limit {limit.name!r}: given back more often than taken")
        bucket.end(self._now_s())
        self._deal(bucket)
        if isinstance(bucket, _Borrowed):
            self._ask(bucket)

    def feed(self, name: str, key: str, pause_s: float) -> None:
        """Deal nothing from a bucket for `pause_s` seconds: the other side asked for that."""
        if pause_s <= 0:
            return
        bucket = self._get_or_make((name, key))
        if bucket is not None:
            bucket.pause(self._now_s(), pause_s)
            if isinstance(bucket, _Borrowed):
                self._ask(bucket)

    def _bucket(self, limit: RateLimit, key: str) -> _Shared | None:
        """Return the bucket, up to date; None if there are too many already."""
        bucket = self._get_or_make((limit.name, key))
        if bucket is not None:
            bucket.refill(limit, self._now_s())
        return bucket

    def _get_or_make(self, place: tuple[str, str]) -> _Shared | None:
        bucket = self._buckets.get(place)
        if bucket is not None:
            return bucket
        self._forget()
        if len(self._buckets) >= QUOTA_BUCKETS_MAX:
            return None
        now_s = self._now_s()
        bucket = _Own(now_s) if self._lender is None else _Borrowed(now_s, place)
        self._buckets[place] = bucket
        return bucket

    def _forget(self) -> None:
        """Drop the buckets at rest among the few that were looked at the longest ago."""
        now_s = self._now_s()
        for _ in range(min(_LOOKED_AT, len(self._buckets))):
            place, bucket = self._buckets.popitem(last=False)
            if bucket.count or not bucket.is_at_rest(now_s):
                self._buckets[place] = bucket

    def _refuse(self) -> float:
        """Return when to ask again when there are too many buckets."""
        now_s = self._now_s()
        self._full_s = max(now_s + _FULL_S, self._full_s + QUOTA_WAKE_S_MIN)
        return self._full_s - now_s

    def _took(self, bucket: _Shared) -> bool:
        """Take one, unless somebody waits: they come first."""
        self._deal(bucket)
        now_s = self._now_s()
        if bucket.count or not bucket.may_take(now_s):
            return False
        bucket.take(now_s)
        return True

    def _in_vain(self, bucket: _Shared, owner: str, patience_s: float) -> bool:
        """Tell whether a caller's turn cannot come within its patience."""
        now_s = self._now_s()
        turn_s = bucket.earliest_s(now_s, bucket.ahead_of(owner))
        return patience_s <= 0 or turn_s > now_s + patience_s

    def _promise(self, bucket: _Shared, owner: str) -> float:
        return bucket.promise(owner, bucket.ahead_of(owner), self._now_s())

    def _deal(self, bucket: _Shared) -> None:
        """Serve those who wait as far as possible, and see to it that the rest is served."""
        now_s = self._now_s()
        bucket.advance(now_s)
        while bucket.count and bucket.may_take(now_s):
            bucket.take(now_s)
            bucket.next_waiter().set_result(None)
        self._arm(bucket)
        if isinstance(bucket, _Borrowed):
            self._keep_a_while(bucket)

    def _arm(self, bucket: _Shared) -> None:
        """Have a timer while somebody waits for time to pass; a use that ends needs none."""
        if not bucket.count:
            if bucket.timer is not None:
                bucket.timer.cancel()
                bucket.timer = None
            return
        now_s = self._now_s()
        if isinstance(bucket, _Borrowed):
            self._ask(bucket)
            if bucket.timer is not None:  # what was lent since may be there earlier
                bucket.timer.cancel()
                bucket.timer = None
        bucket.advance(now_s)
        wait_s = bucket.wake_s(now_s) - now_s
        if bucket.may_take(now_s):  # since it was dealt from, just now
            wait_s = _TIMER_S_MIN
        if bucket.timer is None and 0 < wait_s < math.inf:
            bucket.timer = asyncio.get_running_loop().call_later(
                max(wait_s, _TIMER_S_MIN), self._fire, bucket, context=Context()
            )

    def _fire(self, bucket: _Shared) -> None:
        bucket.timer = None
        self._deal(bucket)

    def _withdraw(self, bucket: _Shared, owner: str, waiter: _Waiter) -> None:
        """Let a caller go that does not wait any longer; what it was dealt goes to the next."""
        if waiter.done():
            bucket.untake()
        else:
            bucket.leave(owner, waiter)
        self._deal(bucket)

    # --- over several nodes

    def _keep_a_while(self, bucket: _Borrowed) -> None:
        """Keep uses that nobody has for who may come soon; not for longer."""
        if bucket.slots > len(bucket.starts) and not bucket.tidying:
            bucket.tidying = True
            loop = asyncio.get_running_loop()
            loop.call_later(QUOTA_KEPT_S, self._tidy, bucket, context=Context())

    def _tidy(self, bucket: _Borrowed) -> None:
        """Give back the uses that nobody wants."""
        bucket.tidying = False
        if bucket.count:
            self._keep_a_while(bucket)
        else:
            bucket.settle()
            self._ask(bucket)

    def _ask(self, bucket: _Borrowed, more: int = 0) -> None:
        """Ask the lender, if there is something to ask for or to give back."""
        count = bucket.count + more
        if self._spawn is not None and bucket.is_to_ask(self._now_s(), count):
            demand = bucket.ask(*bucket.place, self._now_s(), count)
            self._spawn(self._borrow(bucket, demand))

    async def _borrow(self, bucket: _Borrowed, demand: Demand) -> None:
        assert self._lender is not None
        grant = None
        try:
            grant = await self._lender.lend(demand)
        except StoreError as error:
            logger.info("rate limit %r cannot be asked for now: %s", demand.name, error)
        finally:
            if grant is None:
                bucket.failed(demand, self._now_s())
            else:
                bucket.granted(demand, grant, self._now_s())
        self._deal(bucket)
        self._ask(bucket)
