"""What a journal shows of a run: whether it was past where a task of its code is now."""

from __future__ import annotations

import pytest

from durable_endpoints.engine.scope import Scope
from durable_endpoints.journal import Journal
from durable_endpoints.records import Entry, Kind
from tests.engine.worlds import World, play

HEAD = b'{"status":200,"headers":[]}'


def journal(*kinds: tuple[Kind, str], claimed: str = "", delivered: int = 0) -> Journal:
    """Return one in the middle of a replay: which calls were made again, how many have ended."""
    entries = [
        Entry(seq, kind, key, 0, 0, 0, b"", HEAD if kind == Kind.HEAD else b"{}")
        for seq, (kind, key) in enumerate(((Kind.STARTED, ""), *kinds))
    ]
    found = Journal(entries)
    for ident in claimed.split():
        assert found.claim(ident, "call", 0) is not None
    for _ in range(delivered):
        upcoming = found.upcoming
        assert upcoming is not None
        found.deliver(upcoming)
    return found


def shows(found: Journal, ahead: str = "") -> bool:
    return found.shows_more_than(lambda ident: ident in ahead.split())


SHARED = (Kind.SHARED, "")
A, B = (Kind.STEP, "a.0/0 call"), (Kind.STEP, "b.0/0 call")
TIMER_B, FIRED_B = (Kind.TIMER, "b.0/0 call"), (Kind.FIRED, "b.0/0 call")


def test_one_task_alone_has_done_all_there_is() -> None:
    assert shows(journal(A, B, claimed="a.0/0 b.0/0", delivered=1))


def test_what_came_before_tasks_were_side_by_side_is_of_one() -> None:
    assert shows(journal(A, B, SHARED, claimed="a.0/0 b.0/0", delivered=1))
    assert not shows(journal(A, SHARED, B, claimed="a.0/0 b.0/0", delivered=1))


def test_nothing_is_left_but_to_tell_of_a_cancellation() -> None:
    cancelled = journal(A, (Kind.CANCEL, ""), claimed="a.0/0", delivered=1)
    assert cancelled.telling
    assert not shows(cancelled)


UNDONE = (Kind.INTENT, "undo/1 undo call")
BOTH = ((Kind.CANCEL, ""), UNDONE)


def test_what_came_of_a_cancellation_shows_nothing_to_who_has_yet_to_be_told() -> None:
    assert not shows(journal(A, *BOTH, claimed="a.0/0", delivered=1))
    told = journal(A, *BOTH, claimed="a.0/0", delivered=1)
    told.pass_cancellation()
    assert shows(told)


def test_a_call_from_before_a_cancellation_shows_it() -> None:
    assert shows(journal(A, B, *BOTH, claimed="a.0/0", delivered=1))


@pytest.mark.parametrize("kind", [Kind.HEAD, Kind.CHUNK, Kind.EMIT])
def test_what_readers_saw_before_a_cancellation_shows_it(kind: Kind) -> None:
    assert shows(journal(A, (kind, ""), *BOTH, claimed="a.0/0", delivered=1))


def test_a_completion_of_a_call_that_is_made_shows_nothing() -> None:
    assert not shows(journal(SHARED, A, B, claimed="a.0/0 b.0/0", delivered=1))


def test_a_call_that_is_yet_to_be_made_shows_it() -> None:
    assert shows(journal(SHARED, A, B, claimed="a.0/0", delivered=1))


def test_a_neighbours_call_from_before_the_last_completion_shows_nothing() -> None:
    found = journal(SHARED, TIMER_B, A, FIRED_B, claimed="a.0/0", delivered=1)
    assert not shows(found)
    assert shows(found, ahead="b.0/0")  # unless it is the task's own: it got further by itself


@pytest.mark.parametrize("kind", [Kind.HEAD, Kind.CHUNK, Kind.EMIT])
def test_what_readers_have_seen_shows_it(kind: Kind) -> None:
    assert shows(journal(SHARED, A, (kind, "e1"), claimed="a.0/0", delivered=1))


def test_a_second_item_was_asked_for_behind_the_first() -> None:
    stream, item = (Kind.STREAM, "b.0/0 call"), (Kind.ITEM, "b.0/0 call")
    one = journal(SHARED, A, stream, item, claimed="a.0/0 b.0/0", delivered=1)
    two = journal(SHARED, A, stream, item, item, claimed="a.0/0 b.0/0", delivered=1)
    assert not shows(one)
    assert shows(one, ahead="b.0/0")
    assert shows(two)


def test_what_lies_ahead_of_a_task_is_its_own_calls_and_those_of_tasks_to_come() -> None:
    async def scenario(one: World) -> None:
        root = Scope(one.engine.begin("run", version="1", args=b'{"kind":"call"}', payload=b""))
        task = root.child("one")
        task.child("inner")
        others = ["one.0/inner.0/0", "one.1/0", "0", "two.0/0"]
        assert not [ident for ident in others if task.is_ahead(ident)]
        own = ["one.0/0", "one.0/inner.1/0", "one.0/other.0/x.0/3"]
        assert [ident for ident in own if task.is_ahead(ident)] == own
        ahead = ["0", "one.1/0", "two.0/0", "undo/0"]
        assert [ident for ident in ("one.0/0", *ahead) if root.is_ahead(ident)] == ahead

    play(scenario)
