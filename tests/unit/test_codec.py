from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints.codec import Codec, codec_of, dumps
from durable_endpoints.errors import NotSerializable, PayloadTooLarge

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_i2_what_is_recorded_is_read_back(value: Any) -> None:
    codec = Codec("step x")
    data, live = codec.record(value)
    assert codec.decode(data) == live == value
    assert codec.encode(live) == data


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {"b": object()}]}, "$.a[1].b"),
        ({"a": float("nan"), "b": None}, "$.a"),
        ({"a": {1: 2}}, "$.a"),
        ([{1, 2}], "$[0]"),
        ("\ud800", "$"),
        (2**70, "$"),
    ],
)
def test_the_error_names_step_and_path(value: Any, path: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        dumps(value, "step search#0")
    assert caught.value.path == path
    assert "step search#0" in str(caught.value)


def test_too_deep_is_an_error_not_a_crash() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotSerializable):
        dumps(value, "step x")


@dataclass
class Order:
    number: int
    when: datetime


def test_a_dataclass_comes_back_by_its_annotation() -> None:
    def place() -> Order:
        raise AssertionError

    codec = codec_of("step place", place)
    order = Order(3, datetime(2026, 11, 21, tzinfo=UTC))
    data, live = codec.record(order)
    assert live == order
    assert codec.decode(data) == order


def test_a_result_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        Codec("step x").encode("x" * (1024 * 1024))
