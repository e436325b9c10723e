from __future__ import annotations

import asyncio
import subprocess
import time
import urllib.error
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from durable_endpoints import failures
from durable_endpoints.errors import (
    DurableError,
    Escalate,
    NonRetryableError,
    NotSerializable,
    PayloadTooLarge,
    RetryAfter,
    SignalTimeout,
)
from durable_endpoints.hints import status_of
from durable_endpoints.limits import RETRY_HINT_S_MAX
from durable_endpoints.retry import Retry, classify, delay_hint, next_delay

NOW_S = 1_700_000_000.0
NOW = datetime.fromtimestamp(NOW_S, UTC)


def answered(
    status: int, headers: dict[str, str] | None = None, kind: Any = httpx
) -> httpx.HTTPStatusError:
    request = kind.Request("POST", "http://model/v1")
    response = kind.Response(status, headers=headers or {}, request=request)
    error: httpx.HTTPStatusError = kind.HTTPStatusError("no", request=request, response=response)
    return error


class CarriesStatus(Exception):
    def __init__(self, **fields: Any) -> None:
        super().__init__()
        vars(self).update(fields)


def named(module: str, name: str, *bases: type[Exception]) -> Exception:
    """An instance of a class that looks as if a library had defined it."""
    kind = type(name, bases or (Exception,), {"__module__": module})
    error: Exception = kind()
    return error


# --- the policy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"attempts": 0}, {"attempts": -1}, {"attempts": 2.0}, {"attempts": True},
        {"initial": -0.1}, {"initial": float("nan")}, {"initial": "1"}, {"initial": 10**400},
        {"factor": 0.5}, {"factor": float("inf")},
        {"maximum": -1}, {"maximum": float("inf")}, {"maximum": None},
        {"jitter": -0.1}, {"jitter": 1.1}, {"jitter": True},
        {"deadline": 0}, {"deadline": -1}, {"deadline": float("nan")},
        {"on": ()}, {"on": (ValueError, 3)}, {"on": int}, {"on": "retry"}, {"on": [ValueError]},
    ],
)  # fmt: skip
def test_what_makes_no_policy_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Retry(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"attempts": 1}, {"attempts": None, "deadline": 5}, {"initial": 0, "maximum": 0},
        {"jitter": 0}, {"jitter": 1}, {"on": OSError}, {"on": (OSError, ValueError)},
        {"on": lambda error: True}, {"initial": 100},
    ],
)  # fmt: skip
def test_what_makes_a_policy_is_taken(fields: dict[str, Any]) -> None:
    policy = Retry(**fields)
    with pytest.raises(AttributeError):
        policy.attempts = 9  # type: ignore[misc]


# --- which failures are worth another attempt -------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, "fatal"), (401, "fatal"), (403, "fatal"), (404, "fatal"), (409, "fatal"),
        (410, "fatal"), (413, "fatal"), (422, "fatal"), (426, "fatal"), (451, "fatal"),
        (408, "retry"), (425, "retry"), (429, "retry"),
        (500, "retry"), (501, "retry"), (502, "retry"), (503, "retry"), (504, "retry"),
        (529, "retry"), (599, "retry"), (302, "retry"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("client", [httpx, httpx2])
def test_a_status_decides(status: int, verdict: str, client: Any) -> None:
    assert classify(answered(status, kind=client)) == verdict


@pytest.mark.parametrize("status", [400, 409, 429, 500])
@pytest.mark.parametrize(("wish", "verdict"), [("true", "retry"), ("False ", "fatal")])
def test_the_server_may_say_whether_to_retry(status: int, wish: str, verdict: str) -> None:
    assert classify(answered(status, {"X-Should-Retry": wish})) == verdict


def test_a_senseless_wish_leaves_it_to_the_status() -> None:
    assert classify(answered(409, {"x-should-retry": "maybe"})) == "fatal"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConnectionResetError(), "retry"), (TimeoutError(), "retry"),
        (TimeoutError(), "retry"), (OSError(101, "Network is unreachable"), "retry"),
        (httpx.ConnectTimeout("t"), "retry"), (httpx.ReadError("r"), "retry"),
        (httpx.RemoteProtocolError("r"), "retry"), (httpx.PoolTimeout("p"), "retry"),
        (httpx2.ConnectError("c"), "retry"), (httpx2.RemoteProtocolError("r"), "retry"),
        (aiohttp.ServerDisconnectedError(), "retry"), (aiohttp.ServerTimeoutError(), "retry"),
        (aiohttp.ClientPayloadError(), "retry"),
        (requests.ConnectionError(), "retry"), (requests.Timeout(), "retry"),
        (requests.exceptions.ChunkedEncodingError(), "retry"),
        (named("openai", "APITimeoutError"), "retry"),
        (named("anthropic._exceptions", "APIConnectionError", LookupError), "retry"),
        (ValueError("a model's JSON was cut"), "retry"), (Exception(), "retry"),
        (RetryAfter(3), "retry"),
        (httpx.UnsupportedProtocol("ftp"), "fatal"), (httpx2.LocalProtocolError("l"), "fatal"),
        (httpx.InvalidURL("u"), "fatal"), (aiohttp.InvalidURL("u"), "fatal"),
        (requests.exceptions.MissingSchema(), "fatal"), (requests.exceptions.InvalidURL(), "fatal"),
        (TypeError(), "fatal"), (NameError(), "fatal"), (UnboundLocalError(), "fatal"),
        (AttributeError(), "fatal"), (KeyError(), "fatal"), (IndexError(), "fatal"),
        (AssertionError(), "fatal"), (ModuleNotFoundError(), "fatal"), (SyntaxError(), "fatal"),
        (NotImplementedError(), "fatal"), (ZeroDivisionError(), "fatal"),
        (RecursionError(), "fatal"), (NonRetryableError("no"), "fatal"),
        (NotSerializable("step x", "$", "no"), "fatal"), (PayloadTooLarge("x", 2, 1), "fatal"),
        (Escalate("look"), "escalate"),
        (KeyboardInterrupt(), "fatal"), (asyncio.CancelledError(), "fatal"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_the_kind_of_error_decides(error: BaseException, verdict: str) -> None:
    assert classify(error) == verdict


def test_a_library_is_known_by_its_package_not_by_a_class_of_the_same_name() -> None:
    assert classify(named("mine.openai", "APITimeoutError", TypeError)) == "fatal"
    assert classify(named("openai.types", "APITimeoutError", TypeError)) == "retry"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status_code": 429}, 429), ({"status": 503}, 503), ({"status": "UNAVAILABLE"}, None),
        ({"status_code": True}, None), ({"status_code": 42}, None), ({"status_code": 1006}, None),
        ({"code": 429}, None), ({"code": 429, "headers": {}}, 429),
        ({"code": "rate_limited", "headers": {}}, None),
        ({"response": CarriesStatus(status_code=502)}, 502),
        ({"response": CarriesStatus(status=504)}, 504),
        ({"code": 400, "status": "BAD", "response": CarriesStatus()}, 400),
        ({"response": None}, None), ({}, None),
    ],
)  # fmt: skip
def test_where_a_status_is_found(fields: dict[str, Any], status: int | None) -> None:
    assert status_of(CarriesStatus(**fields)) == status


def test_other_errors_with_a_code_have_no_status() -> None:
    assert status_of(SystemExit(404)) is None
    assert classify(subprocess.CalledProcessError(404, "x")) == "retry"


def test_the_standard_library_and_other_clients() -> None:
    headers = Message()
    headers["Retry-After"] = "7"
    raised = urllib.error.HTTPError("http://x", 404, "no", headers, None)
    assert (classify(raised), delay_hint(raised, NOW_S)) == ("fatal", 7.0)
    raised.close()
    info: Any = None
    refused = aiohttp.ClientResponseError(info, (), status=429, headers=headers)  # type: ignore[arg-type]
    assert (classify(refused), delay_hint(refused, NOW_S)) == ("retry", 7.0)
    response = requests.Response()  # its truth value is False from 400 on
    response.status_code = 404
    response.headers["retry-after"] = "8"
    failed = requests.HTTPError(response=response)
    assert (classify(failed), delay_hint(failed, NOW_S)) == ("fatal", 8.0)


@pytest.mark.parametrize("library", ["openai", "anthropic"])
def test_the_sdks_of_the_providers(library: str) -> None:
    sdk = pytest.importorskip(library)
    request = httpx.Request("POST", "http://model/v1")

    def refused(kind: str, status: int, headers: dict[str, str]) -> Exception:
        response = httpx.Response(status, headers=headers, request=request)
        error: Exception = getattr(sdk, kind)("no", response=response, body=None)
        return error

    assert classify(sdk.APIConnectionError(request=request)) == "retry"
    assert classify(sdk.APITimeoutError(request=request)) == "retry"
    assert classify(refused("AuthenticationError", 401, {})) == "fatal"
    assert classify(refused("InternalServerError", 529, {})) == "retry"
    limited = refused("RateLimitError", 429, {"retry-after-ms": "1500", "retry-after": "9"})
    assert (classify(limited), delay_hint(limited, NOW_S)) == ("retry", 1.5)


def test_a_property_that_raises_tells_nothing() -> None:
    class Foreign(Exception):
        @property
        def response(self) -> None:
            raise RuntimeError("no response was set")

    assert classify(Foreign()) == "retry"
    assert delay_hint(Foreign(), NOW_S) is None


def test_a_group_is_as_its_members() -> None:
    def group(*errors: Exception) -> ExceptionGroup[Exception]:
        return ExceptionGroup("several", errors)

    assert classify(group(TypeError())) == "fatal"
    assert classify(group(group(answered(503)))) == "retry"
    assert classify(group(OSError(), ValueError())) == "retry"
    assert classify(group(OSError(), TypeError())) == "fatal"
    assert classify(group(TypeError(), group(Escalate("look")))) == "escalate"
    assert delay_hint(group(RetryAfter(2), group(RetryAfter(5)), OSError()), NOW_S) == 5.0
    deep = group(TypeError())
    for _ in range(5000):
        deep = group(deep)
    assert classify(deep) == "fatal"


def test_classes_given_as_on_are_retried_and_no_others() -> None:
    assert classify(KeyError(), on=LookupError) == "retry"
    assert classify(answered(404), on=(httpx.HTTPError, OSError)) == "retry"
    assert classify(answered(503), on=(OSError,)) == "fatal"
    assert classify(ExceptionGroup("g", [KeyError()]), on=KeyError) == "retry"
    assert classify(ExceptionGroup("g", [TypeError()]), on=ExceptionGroup) == "retry"


@pytest.mark.parametrize("on", [OSError, (OSError,), lambda error: "fatal", DurableError])
def test_what_the_code_says_outright_comes_before_on(on: Any) -> None:
    assert classify(RetryAfter(1), on=on) == "retry"
    assert classify(NonRetryableError("no"), on=on) == "fatal"
    assert classify(Escalate("look"), on=on) == "escalate"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (True, "retry"), (False, "fatal"), ("retry", "retry"), ("fatal", "fatal"),
        ("escalate", "escalate"), (None, "fatal"),
    ],
)  # fmt: skip
def test_a_function_given_as_on_decides(answer: Any, verdict: str) -> None:
    seen: list[BaseException] = []

    def on(error: BaseException) -> Any:
        seen.append(error)
        return answer

    error = TypeError()
    assert classify(ExceptionGroup("g", [error]), on=on) == verdict
    assert seen == [error]


@pytest.mark.parametrize("answer", [1, 0, "no", "", object()])
def test_a_function_that_returns_no_verdict_is_named(answer: Any) -> None:
    with pytest.raises(ValueError, match="on="):
        classify(OSError(), on=lambda error: answer)


# --- what the other side asks for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("0", 0.0), ("3", 3.0), (" 3 ", 3.0), ("2.5", 2.5), ("+4", 4.0), ("-5", 0.0),
        ("999999999", RETRY_HINT_S_MAX), (format_datetime(NOW, usegmt=True), 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0), ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0), ("Tue, 14 Nov 2023 23:14:20 +0100", 60.0),
        ("", None), ("soon", None), ("nan", None), ("inf", None), ("1e3", None), ("1_0", None),
        ("١٢", None), ("0x10", None), ("9" * 400, None), ("Tue, 99 Nov 2023 22:14:20 GMT", None),
        ("Tue, 14 Nov 2023 22:14:20 +9999999", None), ("2023-11-14T22:14:20Z", None),
    ],
)  # fmt: skip
def test_retry_after(asked: str, seconds: float | None) -> None:
    assert delay_hint(CarriesStatus(headers={"Retry-After": asked}), NOW_S) == seconds


@given(st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ .*"))
def test_whatever_a_server_sends_is_a_bounded_time_or_nothing(text: str) -> None:
    names = (
        "retry-after",
        "retry-after-ms",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-a-reset",
    )
    left = {"x-ratelimit-remaining-tokens": "0", "anthropic-ratelimit-a-remaining": "0"}
    for name in names:
        hint = delay_hint(CarriesStatus(headers={name: text} | left), NOW_S)
        assert hint is None or 0 <= hint <= RETRY_HINT_S_MAX


def test_a_date_without_a_zone_is_in_utc_wherever_the_machine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        error = CarriesStatus(headers={"Retry-After": "Tue Nov 14 22:14:20 2023"})
        assert delay_hint(error, NOW_S) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_milliseconds_come_before_seconds_and_nonsense_before_nothing() -> None:
    headers = {"retry-after-ms": "250", "retry-after": "9"}
    assert delay_hint(answered(429, headers), NOW_S) == 0.25
    assert delay_hint(answered(429, headers | {"retry-after-ms": "soon"}), NOW_S) == 9.0


def test_headers_of_bytes_are_read() -> None:
    assert delay_hint(CarriesStatus(headers={b"Retry-After": b"4"}), NOW_S) == 4.0


@pytest.mark.parametrize(
    ("remaining", "reset", "seconds"),
    [
        ("0", "1s", 1.0), ("0", "6m0s", 360.0), ("0", "120ms", 0.12), ("0", "1h2m3.5s", 3723.5),
        ("-1", "1s", 1.0), ("0", "9d", RETRY_HINT_S_MAX), ("1", "1s", None), (None, "1s", None),
        ("0", "soon", None), ("0", "12", None), ("0", "1s2", None), ("0", "", None),
        ("many", "1s", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["requests", "tokens"])
def test_the_reset_times_of_openai_count_when_nothing_remains(
    remaining: str | None, reset: str, seconds: float | None, what: str
) -> None:
    headers = {f"x-ratelimit-reset-{what}": reset, "x-ratelimit-remaining-other": "0"}
    if remaining is not None:
        headers[f"x-ratelimit-remaining-{what}"] = remaining
    hint = delay_hint(answered(429, headers), NOW_S)
    assert hint == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("remaining", "reset", "seconds"),
    [
        ("0", "2023-11-14T22:13:50Z", 30.0), ("0", "2023-11-14T23:13:50+01:00", 30.0),
        ("0", "2023-11-14T22:13:00Z", 0.0), ("7", "2023-11-14T22:13:50Z", None),
        ("0", "2023-11-14T22:13:50", None), ("0", "soon", None),
    ],
)  # fmt: skip
def test_the_reset_times_of_anthropic_count_when_nothing_remains(
    remaining: str, reset: str, seconds: float | None
) -> None:
    headers = {
        "anthropic-ratelimit-input-tokens-remaining": remaining,
        "anthropic-ratelimit-input-tokens-reset": reset,
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2023-11-14T23:59:00Z",
    }
    assert delay_hint(answered(429, headers), NOW_S) == seconds


def test_of_several_used_up_quotas_the_last_refilled_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s",
    }  # fmt: skip
    assert delay_hint(answered(429, headers), NOW_S) == 360.0


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (3, 3.0), (0.5, 0.5), (-2, 0.0), (10**9, RETRY_HINT_S_MAX),
        (timedelta(minutes=2), 120.0), (NOW + timedelta(seconds=12), 12.0),
        (NOW - timedelta(seconds=12), 0.0),
        (datetime.fromisoformat("2023-11-14T23:13:50+01:00"), 30.0),
    ],
)  # fmt: skip
def test_retry_after_raised_by_the_code(delay: Any, seconds: float) -> None:
    error = RetryAfter(delay, "busy")
    again = failures.load("step x", failures.dump(error))
    assert isinstance(again, RetryAfter)
    assert delay_hint(error, NOW_S) == delay_hint(again, NOW_S) == seconds
    assert str(error) == str(again) == "busy"


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), datetime(2023, 1, 1)])  # noqa: DTZ001
def test_a_time_that_is_none_is_refused(delay: Any) -> None:
    with pytest.raises(ValueError, match="RetryAfter"):
        RetryAfter(delay)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RetryAfter(3), "again after 3.0 s"), (RetryAfter(NOW), f"again after {NOW.isoformat()}"),
        (NonRetryableError("card declined"), "card declined"), (Escalate("look"), "look"),
        (SignalTimeout("approval"), "no signal 'approval' came within the timeout of the wait"),
    ],
)  # fmt: skip
def test_the_errors_survive_being_recorded(error: Exception, text: str) -> None:
    again = failures.load("step x", failures.dump(error))
    assert type(again) is type(error)
    assert (again.args, vars(again)) == (error.args, vars(error))
    assert str(error) == str(again) == text
    assert isinstance(error, DurableError)


# --- when the next attempt begins -------------------------------------------------------------


def delays(retry: Retry, count: int, chance: float = 0.5) -> list[float | None]:
    return [next_delay(retry, n, OSError(), NOW_S, NOW_S, chance) for n in range(1, count + 1)]


def test_waits_grow_to_the_maximum_and_end_with_the_attempts() -> None:
    retry = Retry(attempts=6, initial=1, factor=3, maximum=20)
    assert delays(retry, 7) == [1, 3, 9, 20, 20, None, None]
    assert delays(Retry(), 4) == [0.5, 1.0, None, None]
    assert delays(Retry(attempts=1), 1) == [None]


def test_no_number_of_attempts_is_too_many() -> None:
    retry = Retry(attempts=None, factor=10.0)
    assert next_delay(retry, 10**6, OSError(), NOW_S, NOW_S, 0.5) == 60.0
    assert next_delay(Retry(attempts=None, initial=0), 10**6, OSError(), 0, 0, 0.5) == 0.0


def test_jitter_spreads_both_ways() -> None:
    retry = Retry(attempts=None, initial=8, jitter=0.25)
    assert delays(retry, 1, chance=0.0) == [6.0]
    assert delays(retry, 1, chance=0.75) == [9.0]
    assert delays(Retry(initial=8, jitter=0), 1, chance=0.9) == [8.0]


def test_the_longer_of_hint_and_backoff_is_waited_for() -> None:
    retry = Retry(attempts=5, initial=4, jitter=0)
    assert next_delay(retry, 1, RetryAfter(30), NOW_S, NOW_S, 0.5) == 30.0
    assert next_delay(retry, 1, RetryAfter(1), NOW_S, NOW_S, 0.5) == 4.0
    assert next_delay(retry, 1, answered(429, {"retry-after": "99"}), NOW_S, NOW_S, 0.5) == 99.0
    assert next_delay(retry, 5, RetryAfter(30), NOW_S, NOW_S, 0.5) is None


def test_no_attempt_begins_at_the_deadline_or_after_it() -> None:
    retry = Retry(attempts=None, initial=4, jitter=0, deadline=10)
    assert next_delay(retry, 1, OSError(), NOW_S + 5.9, NOW_S, 0.5) == 4.0
    assert next_delay(retry, 1, OSError(), NOW_S + 6, NOW_S, 0.5) is None
    assert next_delay(retry, 1, OSError(), NOW_S + 99, NOW_S, 0.5) is None
    assert next_delay(retry, 1, RetryAfter(30), NOW_S, NOW_S, 0.5) is None
    # The clock was put back: the budget is not larger than it was at the beginning.
    assert next_delay(retry, 2, OSError(), NOW_S - 3600, NOW_S, 0.5) == 8.0
    assert next_delay(retry, 3, OSError(), NOW_S - 3600, NOW_S, 0.5) is None


@given(
    st.integers(1, 10**6),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1e6),
    st.floats(1, 1e6),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
def test_waits_are_bounded(
    failed: int, chance: float, initial: float, factor: float, maximum: float, jitter: float
) -> None:
    retry = Retry(None, initial, factor, maximum, jitter)
    delay = next_delay(retry, failed, OSError(), NOW_S, NOW_S, chance)
    assert delay is not None
    assert 0 <= delay <= maximum * (1 + jitter)
