from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from durable_endpoints.errors import DurableError
from durable_endpoints.limits import LINK_CHARS_MAX, LINK_SECRETS_MAX
from durable_endpoints.links import (
    BadLink,
    ExpiredLink,
    Link,
    new_secret,
    parse_secret,
    sign,
    verify,
)

RUN = "01934f6e-7c1a-7000-8000-00000000002a"
OLD, NEW = b"o" * 24, b"n" * 64
EXPIRES_S = 1_700_000_000

waits = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
secrets = st.binary(min_size=24, max_size=64)


def flips(data: bytes) -> st.SearchStrategy[bytes]:
    def flip(bit: int) -> bytes:
        return bytes(b ^ (1 << bit % 8 if n == bit // 8 else 0) for n, b in enumerate(data))

    return st.integers(0, len(data) * 8 - 1).map(flip)


@given(secrets, waits, st.integers(1, 10**15))
def test_what_was_signed_is_verified(secret: bytes, wait: str, expires_s: int) -> None:
    token = sign([secret], RUN, wait, expires_s)
    assert verify([secret], token, expires_s - 1) == Link(RUN, wait, expires_s)


def test_a_token_can_stand_in_a_url() -> None:
    token = sign([OLD, NEW], RUN, "approve/\n.ü%&?#", EXPIRES_S)
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert set(token) <= allowed
    assert verify([NEW], token, 0).wait == "approve/\n.ü%&?#"


@given(st.data())
def test_any_flipped_bit_of_a_token_refuses(data: st.DataObject) -> None:
    token = sign([OLD], RUN, data.draw(waits), EXPIRES_S)
    changed = data.draw(flips(token.encode())).decode("latin-1")
    with pytest.raises(BadLink):
        verify([OLD], changed, 0)


def test_every_flipped_bit_of_one_token_refuses() -> None:
    token = sign([OLD], RUN, "approval", EXPIRES_S).encode()
    for place in range(len(token)):
        for bit in range(8):
            changed = bytearray(token)
            changed[place] ^= 1 << bit
            with pytest.raises(BadLink):
                verify([OLD], changed.decode("latin-1"), 0)


@pytest.mark.parametrize("wait", ["w", "wa", "wai"])
def test_a_token_is_written_in_one_way_only(wait: str) -> None:
    """Base64 leaves bits over at the end of what it encodes."""
    content, signature = sign([OLD], RUN, wait, EXPIRES_S).split(".")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ways = [f"{content[:-1]}{digit}.{signature}" for digit in digits if digit != content[-1]]
    ways += [f"{content}.{signature[:-1]}{digit}" for digit in digits if digit != signature[-1]]
    ways += [f"{content}=.{signature}", f"{content}.{signature}=", f" {content}.{signature}"]
    for token in ways:
        with pytest.raises(BadLink):
            verify([OLD], token, 0)


@given(st.data(), secrets)
def test_any_flipped_bit_of_the_secret_refuses(data: st.DataObject, secret: bytes) -> None:
    token = sign([secret], RUN, "approval", EXPIRES_S)
    with pytest.raises(BadLink):
        verify([data.draw(flips(secret))], token, 0)


@given(st.data())
def test_no_part_can_be_exchanged(data: st.DataObject) -> None:
    one = (RUN, data.draw(waits), data.draw(st.integers(1, 10**9)))
    two = (RUN, data.draw(waits), data.draw(st.integers(1, 10**9)))
    assume(one != two)
    content = sign([OLD], *one).split(".")[0]
    signature = sign([OLD], *two).split(".")[1]
    with pytest.raises(BadLink):
        verify([OLD], f"{content}.{signature}", 0)


def test_a_link_is_good_until_its_expiry_and_void_from_then_on() -> None:
    token = sign([OLD], RUN, "approval", EXPIRES_S)
    assert verify([OLD], token, EXPIRES_S - 0.001).expires_s == EXPIRES_S
    for now_s in (EXPIRES_S, EXPIRES_S + 0.001, EXPIRES_S + 10**9):
        with pytest.raises(ExpiredLink):
            verify([OLD], token, now_s)


def test_an_expired_link_that_is_not_ours_does_not_say_so() -> None:
    with pytest.raises(BadLink):
        verify([NEW], sign([OLD], RUN, "approval", EXPIRES_S), EXPIRES_S + 1)


def test_secrets_can_be_changed_while_links_are_on_their_way() -> None:
    before = sign([OLD], RUN, "approval", EXPIRES_S)
    during = sign([NEW, OLD], RUN, "approval", EXPIRES_S)
    after = sign([NEW], RUN, "approval", EXPIRES_S)
    for token in (before, during, after):
        assert verify([NEW, OLD], token, 0) == verify([OLD, NEW], token, 0)
    assert verify([OLD], during, 0) == verify([NEW], during, 0)
    with pytest.raises(BadLink):
        verify([NEW], before, 0)
    with pytest.raises(BadLink):
        verify([OLD], after, 0)


@given(st.text(max_size=200) | st.from_regex(r"\A[A-Za-z0-9_-]{1,60}(\.[A-Za-z0-9_-]{43}){1,3}\Z"))
def test_nothing_else_is_a_link(token: str) -> None:
    with pytest.raises(BadLink):
        verify([OLD], token, 0)


def test_a_signed_content_that_is_no_links_is_refused() -> None:
    for content in (
        b"",
        b"run",
        b"run.12",
        b"run.0.wait",
        b"run.x.wait",
        b".12.wait",
        b"run.12.",
        b"\xff",
    ):
        signature = hmac.digest(OLD, b"link_" + content, "sha256")
        parts = [
            base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (content, signature)
        ]
        with pytest.raises(BadLink):
            verify([OLD], ".".join(parts), 0)


def test_the_signature_is_the_one_of_standard_webhooks() -> None:
    token = sign([OLD], RUN, "approval", EXPIRES_S)
    content, signature = token.split(".")
    signed = f"link_{RUN}.{EXPIRES_S}.approval".encode()
    assert (
        base64.urlsafe_b64decode(signature + "=") == hmac.new(OLD, signed, hashlib.sha256).digest()
    )
    assert b"link_" + base64.urlsafe_b64decode(content + "==") == signed


def test_a_webhooks_signature_does_not_pass_for_a_links() -> None:
    content = f"{RUN}.{EXPIRES_S}.approval".encode()
    parts = [content, hmac.digest(OLD, content, "sha256")]
    token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    with pytest.raises(BadLink):
        verify([OLD], token, 0)


@pytest.mark.parametrize(
    ("run_id", "wait", "expires_s"),
    [
        ("", "w", 1), ("a.b", "w", 1), (RUN, "", 1), (RUN, "w" * 201, 1), (RUN, "w", 0),
        (RUN, "w", -1), (RUN, "w", 10**16), (RUN, "\ud800", 1), (RUN, "😀" * 200, 1),
    ],
)  # fmt: skip
def test_what_cannot_be_signed_is_refused(run_id: str, wait: str, expires_s: int) -> None:
    with pytest.raises(ValueError):
        sign([OLD], run_id, wait, expires_s)


def test_a_long_token_is_refused_unread() -> None:
    token = sign([OLD], RUN, "w" * 200, EXPIRES_S)
    assert len(token) <= LINK_CHARS_MAX
    with pytest.raises(BadLink):
        verify([OLD], token + "." + "A" * 43 * LINK_CHARS_MAX, 0)


@pytest.mark.parametrize("bad", [[], [b"short"], [b"l" * 65], [OLD] * (LINK_SECRETS_MAX + 1)])
def test_secrets_that_are_none_are_refused(bad: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        sign(bad, RUN, "approval", EXPIRES_S)
    with pytest.raises(ValueError, match="secret"):
        verify(bad, sign([OLD], RUN, "approval", EXPIRES_S), 0)


@given(secrets)
def test_a_written_secret_is_read(secret: bytes) -> None:
    assert parse_secret("whsec_" + base64.b64encode(secret).decode()) == secret


def test_a_new_secret_is_new() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(parse_secret(secret)) for secret in made} == {32}


@pytest.mark.parametrize(
    "text",
    [
        "", "whsec_", "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(), base64.b64encode(b"hush" * 8).decode(),
        "whsec_" + base64.b64encode(b"hush" * 8).decode()[:-1], "whsec_hush hush", "whsec_ü",
        "whsec_" + base64.b64encode(b"hush" * 8).decode() + "\n",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_<base64") as refused:
        parse_secret(text)
    assert "hush" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert issubclass(BadLink, DurableError)
    assert issubclass(ExpiredLink, DurableError)
