"""What a node has of a rate limit's bucket that all nodes share. Pure: time is an argument.

The shared bucket lends tokens for known times, a little ahead, and uses at a time. A node asks for
what its callers lack and what they are likely to take in the next moment, so that most of them need
no round trip. Tokens that are not used soon are void; uses are given back. What a node has when it
dies is lost with it: tokens come anew by themselves, uses when its lease is over.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from durable_endpoints.buckets import Bucket
from durable_endpoints.limits import (
    QUOTA_AHEAD_S,
    QUOTA_KEPT_S,
    QUOTA_LENT_MAX,
    QUOTA_POLL_S,
    QUOTA_RENEW_S,
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a node asks of a shared bucket: what it has of it, and how much more it wants."""

    name: str
    key: str
    rate: float | None
    capacity: float
    concurrent: int | None
    tokens_had: int
    tokens: int
    uses_had: int  # at a time
    uses_spare: int  # of those, not in use
    uses: int
    ahead_s: float = QUOTA_AHEAD_S  # how far tokens may be promised
    pause_s: float = 0.0  # nothing is lent for so long


@dataclass(frozen=True, slots=True)
class Grant:
    """What it is lent. Times are seconds from now.

    Token `n`, from 0, is there at `max(start_s, base_s + n / rate)`.
    """

    tokens: int
    uses: int
    start_s: float
    base_s: float
    others: int  # nodes that wait, too


@runtime_checkable
class Lender(Protocol):
    """Where the buckets are that all nodes share."""

    async def lend(self, demand: Demand) -> Grant:
        """Lend what there is.

        Raises: StoreAway, StoreFailed.
        """
        ...


class Lent(Bucket):
    """The tokens and the uses that were lent."""

    __slots__ = (
        "ask_s", "asked_s", "asking", "contended", "due", "next_s", "pausing_s", "slots", "told",
        "used",
    )  # fmt: skip

    def __init__(self, now_s: float) -> None:
        super().__init__(now_s)
        self.due: deque[float] = deque()  # when each of the tokens is there
        self.next_s = -math.inf  # before it surely no further one is lent
        self.slots = 0  # uses at a time
        self.told = 0  # so many of them, as the lender knows
        self.contended = False  # other nodes wait for uses
        self.asking = False
        self.ask_s = -math.inf  # when to ask again
        self.asked_s = -math.inf
        self.used = 0  # since it was asked last
        self.pausing_s = 0.0  # of which the lender does not know yet

    def advance(self, now_s: float) -> None:
        """Drop the tokens that nobody has used."""
        self.from_s = max(self.from_s, now_s)
        while self.due and self.due[0] < now_s - QUOTA_KEPT_S:
            self.due.popleft()

    def may_take(self, now_s: float) -> bool:
        """Tell whether one more may begin now."""
        if now_s < self.pause_end_s or (self.rate is not None and not self._is_due(now_s)):
            return False
        return self.concurrent is None or len(self.starts) < self.slots

    def _is_due(self, now_s: float) -> bool:
        return bool(self.due) and self.due[0] <= now_s

    def take(self, now_s: float) -> None:
        """Let one more begin."""
        self.used += 1
        if self.rate is not None:
            self.due.popleft()
        if self.concurrent is not None:
            self.starts.append(now_s)

    def untake(self) -> None:
        """Take back the last `take`: nothing began."""
        if self.rate is not None:
            self.due.appendleft(self.from_s)
        if self.concurrent is not None:
            self.starts.pop()

    def end(self, now_s: float) -> None:
        """Note that a use has ended; where other nodes wait, it is given back."""
        super().end(now_s)
        if self.contended:
            self.slots = max(self.slots - 1, len(self.starts))

    def pause(self, now_s: float, pause_s: float) -> None:
        """Let nothing begin for a while, on any node."""
        self.pause_end_s = max(self.pause_end_s, now_s + pause_s)
        self.pausing_s = max(self.pausing_s, pause_s)
        self.due.clear()

    def is_at_rest(self, now_s: float) -> bool:
        """Tell whether the bucket is as good as a new one."""
        self.advance(now_s)
        busy = self.starts or self.due or self.slots or self.told or self.asking
        return not busy and now_s >= max(self.pause_end_s, self.last_s, self.next_s)

    def earliest_s(self, now_s: float, ahead: int) -> float:
        """Return the time before which one with so many ahead surely may not begin."""
        at_s = max(now_s, self.pause_end_s)
        if self.rate is None:
            return at_s
        if ahead < len(self.due):
            return max(at_s, self.due[ahead])
        if self.next_s < now_s:  # not asked for a while: there may be many
            return at_s
        return max(at_s, self.next_s + (ahead - len(self.due)) / self.rate)

    def lacking(self, count: int) -> tuple[int, int]:
        """Return how many tokens and uses are to be lent for so many callers that wait."""
        tokens = 0 if self.rate is None else max(count - len(self.due), 0)
        uses = 0
        if self.concurrent is not None:
            uses = max(min(count, self.concurrent) - (self.slots - len(self.starts)), 0)
        return tokens, uses

    def next_look_s(self, now_s: float, count: int) -> float:
        """Return when to look again for so many who wait."""
        at_s = math.inf
        if self.due and (self.concurrent is None or len(self.starts) < self.slots):
            at_s = self.due[0]
        if not self.asking and any(self.lacking(count)):
            at_s = min(at_s, self.ask_s)
        return max(at_s, self.pause_end_s if self.pause_end_s > now_s else -math.inf)

    def is_to_ask(self, now_s: float, count: int) -> bool:
        """Tell whether the lender is to be asked now; `count` callers wait."""
        if self.asking:
            return False
        if self.pausing_s or self.slots < self.told:
            return True
        if any(self.lacking(count)):
            return now_s >= max(self.ask_s, self.pause_end_s)
        if self.concurrent is None:
            return False
        # Whoever holds uses looks now and then whether others wait for them.
        return bool(self.told) and now_s >= self.asked_s + QUOTA_RENEW_S

    def ask(self, name: str, key: str, now_s: float, count: int) -> Demand:
        """Return what to ask for; `granted` or `failed` follows."""
        tokens, uses = self.lacking(count)
        if self.concurrent is None and tokens:
            # As much as was taken lately, in half the time for which tokens are kept.
            since_s = max(now_s - self.asked_s, QUOTA_KEPT_S / 2)
            tokens += int(self.used * (QUOTA_KEPT_S / 2) / since_s)
        self.asking, self.asked_s, self.used = True, now_s, 0
        self.told = self.slots
        pause_s, self.pausing_s = self.pausing_s, 0.0
        return Demand(
            name, key, self.rate, self.capacity, self.concurrent, len(self.due),
            min(tokens, QUOTA_LENT_MAX), self.slots, self.slots - len(self.starts), uses,
            pause_s=pause_s,
        )  # fmt: skip

    def granted(self, demand: Demand, grant: Grant, now_s: float) -> None:
        """Take what was lent. Times count from now on: later than they were meant, if anything."""
        self.asking = False
        self.contended = grant.others > 0
        self.pause_end_s = max(self.pause_end_s, now_s + grant.start_s)
        self.slots += grant.uses
        self.told += grant.uses
        least_s, longest_s = QUOTA_POLL_S
        poll_s = least_s
        if demand.rate is not None:
            times = [
                now_s + max(grant.start_s, grant.base_s + n / demand.rate)
                for n in range(grant.tokens + 1)
            ]
            self.next_s = times.pop()
            self.due.extend(times)
            poll_s = min(max(self.next_s - now_s - demand.ahead_s / 2, least_s), longest_s)
        if grant.uses < demand.uses:  # one may be given back at any time
            poll_s = max(poll_s, min(longest_s, self.hold_s / 4))
        is_all = grant.tokens >= demand.tokens and grant.uses >= demand.uses
        self.ask_s = now_s if is_all else now_s + poll_s

    def failed(self, demand: Demand, now_s: float) -> None:
        """Note that nothing is known of what was asked for."""
        self.asking = False
        self.pausing_s = max(self.pausing_s, demand.pause_s)
        self.ask_s = now_s + QUOTA_POLL_S[1]

    def settle(self) -> None:
        """Give back the uses that nobody has."""
        self.slots = len(self.starts)
