"""Signals to runs that wait in memory: the same as to suspended ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server
from tests.surface.test_answering import (
    test_a_dead_run_is_retried_from_the_failed_step,
    test_a_plain_signal_does_not_answer_a_person,
    test_a_plain_signal_does_not_decide_on_a_step,
    test_a_run_signals_another_one,
    test_a_signal_answers_the_wait_for_it,
    test_a_signal_sent_again_is_known,
    test_a_wait_for_one_answer_gets_one,
    test_a_wait_that_timed_out_is_not_answered,
    test_data_of_another_type_is_refused,
    test_early_signals_are_kept_in_order,
    test_many_at_once_are_all_delivered,
    test_twenty_at_once_with_one_key_are_one_signal,
)

__all__ = [
    "test_a_dead_run_is_retried_from_the_failed_step",
    "test_a_plain_signal_does_not_answer_a_person",
    "test_a_plain_signal_does_not_decide_on_a_step",
    "test_a_run_signals_another_one",
    "test_a_signal_answers_the_wait_for_it",
    "test_a_signal_sent_again_is_known",
    "test_a_wait_for_one_answer_gets_one",
    "test_a_wait_that_timed_out_is_not_answered",
    "test_data_of_another_type_is_refused",
    "test_early_signals_are_kept_in_order",
    "test_many_at_once_are_all_delivered",
    "test_twenty_at_once_with_one_key_are_one_signal",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"WAITING_SUSPEND_AFTER": "60"}
    with Server("tests.apps.waiting:app", tmp_path_factory.mktemp("memory"), env=env) as server:
        yield server
