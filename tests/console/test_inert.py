"""What is shown acts on nothing and hides nothing."""

from __future__ import annotations

import pytest

from durable_endpoints.console.inert import finalize, inert, line, shown
from durable_endpoints.console.visit import templates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("é 漢 😀 👨\u200d👩\u200d👧 مرحبا", "é 漢 😀 👨\u200d👩\u200d👧 مرحبا"),
        ("a\nb\tc\r\nd", "a\nb\tc\nd"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x \x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "x link"),
        ("\x1b]52;c;c2VjcmV0\x07clip", "clip"),
        ("\x9b31mred", "red"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("exe.\u202egnp", "exe.⟨U+202E⟩gnp"),
        ("a\u2066b\u2069c", "a⟨U+2066⟩b⟨U+2069⟩c"),
        ("pass\u200bword", "pass⟨U+200B⟩word"),
        ("bell\x07 nul\x00 cr\r", "bell⟨U+0007⟩ nul⟨U+0000⟩ cr⟨U+000D⟩"),
        ("\ufeffbom \u2028line", "⟨U+FEFF⟩bom ⟨U+2028⟩line"),
        ("tag\U000e0041", "tag⟨U+E0041⟩"),
        ("lone \ud800", "lone ⟨U+D800⟩"),
        ("\x1b", "⟨U+001B⟩"),
    ],
)
def test_unseen_characters_are_spelled_out(text: str, expected: str) -> None:
    assert inert(text) == expected


def test_every_value_of_a_template_is_inert_and_escaped() -> None:
    template = templates().from_string('<b title="{{ value }}">{{ value }}</b>{{ nothing }}')
    hostile = '"><script>\u202e\x1b[2J'
    safe = "&#34;&gt;&lt;script&gt;⟨U+202E⟩"
    assert template.render(value=hostile, nothing=None) == f'<b title="{safe}">{safe}</b>'


def test_other_values_are_left_alone() -> None:
    assert finalize(7) == 7
    assert finalize(None) == ""


def test_json_is_indented_and_the_rest_is_shown_as_it_is() -> None:
    assert shown(b'{"a":[1,2]}') == '{\n  "a": [\n    1,\n    2\n  ]\n}'
    assert shown(b"{broken") == "{broken"
    assert shown(b"\xff\xfe") == "��"
    assert shown(b"x" * 100, limit=10) == "x" * 10 + "…"
    assert shown(b"[" * 100_000, limit=5) == "[[[[[…"
    assert line(b"a\nb " + b"c" * 500, limit=10) == "a b cccccc…"
