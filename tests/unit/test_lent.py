"""What a node has of a shared bucket: when it asks, for how much, and what becomes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.buckets import RateLimit
from durable_endpoints.lent import Demand, Grant, Lent
from durable_endpoints.limits import QUOTA_KEPT_S, QUOTA_POLL_S, QUOTA_RENEW_S

RATE = RateLimit("rate", 10, burst=5)
USES = RateLimit("uses", concurrent=3)
BOTH = RateLimit("both", 10, concurrent=3)
NOW_S = 1000.0


def lent(limit: RateLimit) -> Lent:
    made = Lent(NOW_S)
    made.refill(limit, NOW_S)
    return made


def asked(bucket: Lent, count: int, now_s: float = NOW_S) -> Demand:
    assert bucket.is_to_ask(now_s, count)
    return bucket.ask("name", "key", now_s, count)


def test_it_has_nothing_until_it_was_lent_something() -> None:
    for limit in (RATE, USES, BOTH):
        bucket = lent(limit)
        assert not bucket.may_take(NOW_S)
        assert bucket.is_at_rest(NOW_S)
        assert not bucket.is_to_ask(NOW_S, 0)
        assert bucket.is_to_ask(NOW_S, 1)


def test_tokens_come_at_their_times_and_are_void_a_moment_later() -> None:
    bucket = lent(RATE)
    demand = asked(bucket, 4)
    assert (demand.tokens, demand.uses) == (4, 0)
    assert not bucket.is_to_ask(NOW_S, 4)  # it is asking
    bucket.granted(demand, Grant(3, 0, 0.0, -0.1, 0), NOW_S)
    times = [NOW_S, NOW_S, NOW_S + 0.1]
    assert list(bucket.due) == pytest.approx(times)
    assert [bucket.earliest_s(NOW_S, ahead) for ahead in range(5)] == pytest.approx(
        [*times, NOW_S + 0.2, NOW_S + 0.3]
    )
    bucket.take(NOW_S)
    bucket.take(NOW_S)
    assert not bucket.may_take(NOW_S)
    assert bucket.next_look_s(NOW_S, 1) == pytest.approx(NOW_S + 0.1)
    bucket.untake()
    assert bucket.may_take(NOW_S)
    bucket.advance(NOW_S + QUOTA_KEPT_S + 0.05)
    assert len(bucket.due) == 1
    bucket.advance(NOW_S + QUOTA_KEPT_S + 0.11)
    assert not bucket.due


def test_it_asks_for_what_was_taken_lately_too() -> None:
    bucket = lent(RATE)
    bucket.granted(asked(bucket, 9), Grant(9, 0, 0.0, -1.0, 0), NOW_S)
    for _ in range(8):
        bucket.take(NOW_S)
    assert not bucket.is_to_ask(NOW_S, 1)  # there is one for it
    bucket.take(NOW_S)
    assert asked(bucket, 1).tokens == 1 + 9
    assert asked(lent(RATE), 10**6).tokens == 1000


def test_it_asks_again_soon_for_what_there_was_not() -> None:
    bucket = lent(RATE)
    bucket.granted(asked(bucket, 2), Grant(0, 0, 0.0, 60.0, 0), NOW_S)
    assert not bucket.is_to_ask(NOW_S + 0.4, 2)
    assert bucket.is_to_ask(NOW_S + QUOTA_POLL_S[1], 2)
    assert bucket.earliest_s(NOW_S, 0) == NOW_S + 60
    assert not bucket.is_at_rest(NOW_S)


def test_uses_are_kept_for_the_next_and_given_back_where_others_wait() -> None:
    bucket = lent(USES)
    demand = asked(bucket, 9)
    assert (demand.tokens, demand.uses, demand.uses_had, demand.uses_spare) == (0, 3, 0, 0)
    bucket.granted(demand, Grant(0, 2, 0.0, 0.0, 0), NOW_S)
    for _ in range(2):
        assert bucket.may_take(NOW_S)
        bucket.take(NOW_S)
    assert not bucket.may_take(NOW_S)
    bucket.end(NOW_S)
    assert bucket.may_take(NOW_S)
    bucket.take(NOW_S)
    late_s = NOW_S + QUOTA_RENEW_S
    assert bucket.is_to_ask(late_s, 0)  # whether others wait
    demand = asked(bucket, 0, late_s)
    assert (demand.uses, demand.uses_had) == (0, 2)
    bucket.granted(demand, Grant(0, 0, 0.0, 0.0, 1), late_s)
    bucket.end(late_s)
    assert not bucket.may_take(late_s)
    demand = asked(bucket, 1, late_s)
    assert (demand.uses, demand.uses_had, demand.uses_spare) == (1, 1, 0)
    bucket.granted(demand, Grant(0, 1, 0.0, 0.0, 0), late_s)
    bucket.end(late_s)
    bucket.settle()
    assert asked(bucket, 0, late_s).uses_had == 0


def test_a_pause_is_told_and_told_again_after_a_failure() -> None:
    bucket = lent(BOTH)
    bucket.granted(asked(bucket, 3), Grant(3, 3, 0.0, -1.0, 0), NOW_S)
    bucket.pause(NOW_S, 5)
    assert not bucket.may_take(NOW_S)
    demand = asked(bucket, 0)
    assert demand.pause_s == 5
    bucket.failed(demand, NOW_S)
    assert asked(bucket, 0).pause_s == 5
    assert not bucket.may_take(NOW_S + 4.9)


def test_a_pause_elsewhere_holds_here() -> None:
    bucket = lent(RATE)
    bucket.granted(asked(bucket, 1), Grant(0, 0, 7.0, 1.0, 0), NOW_S)
    assert bucket.earliest_s(NOW_S, 0) == NOW_S + 7
    assert not bucket.is_to_ask(NOW_S + 6.9, 1)
    assert bucket.is_to_ask(NOW_S + 7, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "end", "ask", "settle"]), st.integers(0, 4)), max_size=60
    )
)
def test_the_lender_never_knows_of_fewer_uses_than_there_are(moves: list[tuple[str, int]]) -> None:
    """What it is told is at least what is at it: others are never lent the same."""
    bucket = lent(USES)
    told = 0
    for n, (move, count) in enumerate(moves):
        now_s = NOW_S + n
        if move == "take" and bucket.may_take(now_s):
            bucket.take(now_s)
        elif move == "end" and bucket.starts:
            bucket.end(now_s)
        elif move == "settle":
            bucket.settle()
        elif move == "ask" and bucket.is_to_ask(now_s, count):
            demand = bucket.ask("name", "key", now_s, count)
            lends = min(demand.uses, 3 - demand.uses_had)
            told = demand.uses_had + lends
            bucket.granted(demand, Grant(0, lends, 0.0, 0.0, count % 2), now_s)
        assert len(bucket.starts) <= bucket.slots <= told == bucket.told
