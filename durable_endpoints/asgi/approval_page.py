"""The page on which a person approves or declines: plain HTML, no script, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from durable_endpoints.asgi.fields import iso
from durable_endpoints.asgi.problems import Problem
from durable_endpoints.errors import AlreadyAnswered, DurableError, RunEnded
from durable_endpoints.records import RunRecord, WaitRecord

_STYLE: Final = """
:root { color-scheme: light dark; --accent: #0b6e4f; --edge: #8884; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0; display: grid; min-height: 100vh;
  place-items: center; background: Canvas; color: CanvasText; }
main { width: min(34rem, calc(100vw - 2rem)); padding: 1.5rem; border: 1px solid var(--edge);
  border-radius: .75rem; box-sizing: border-box; }
h1 { font-size: 1.25rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
small { opacity: .75; }
label { display: block; margin: .75rem 0 .25rem; }
input, textarea { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem;
  border: 1px solid var(--edge); border-radius: .4rem; background: Field; color: FieldText; }
.row { display: flex; gap: .75rem; margin-top: 1rem; }
button { font: inherit; flex: 1; padding: .65rem; border-radius: .4rem; cursor: pointer;
  border: 1px solid var(--edge); background: ButtonFace; color: ButtonText; }
button.yes { background: var(--accent); border-color: var(--accent); color: #fff; }
:focus-visible { outline: 3px solid #4a9; outline-offset: 2px; }
"""
_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_DIGEST}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",  # the address is the secret
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex",
}
_FIELDS_MAX: Final = 20
_FORM: Final = """<form method="post">
<label for="by">Your name</label><input id="by" name="by" maxlength="200" autocomplete="name">
<label for="comment">Comment</label>
<textarea id="comment" name="comment" rows="3" maxlength="2000"></textarea>
<div class="row"><button name="decision" value="decline">Decline</button>
<button class="yes" name="decision" value="approve">Approve</button></div></form>"""


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )


def question(wait: WaitRecord) -> str:
    """Ask."""
    until = "" if wait.until_ms is None else f" · open until {iso(wait.until_ms)}"
    asked = f"<p>{escape(_inert(wait.summary or ''))}</p>" if wait.summary else ""
    since = f"<small>asked {iso(wait.since_ms)}{until}</small>"
    return _page(f"Approve: {_inert(wait.name)}", asked + since + _FORM)


def decided(decision: Mapping[str, Any]) -> str:
    """Confirm a decision that is durable."""
    word = "Approved" if decision["approved"] else "Declined"
    return _page(word, "<p>Your decision is recorded. You can close this page.</p>")


def over(record: RunRecord, first: bytes | None) -> str:
    """Say that nothing is asked any more, and what was decided; `first`: the recorded signal."""
    if first is not None:
        return _page("Decided before", _told(first))
    return _page("Nothing to decide", f"<p>Nothing is asked here. The run is {record.status}.</p>")


def refused(error: DurableError) -> str:
    """Say why a link, or a decision, is not taken."""
    if isinstance(error, AlreadyAnswered):
        return _page("Decided before", _told(error.answer))
    if isinstance(error, RunEnded):
        return _page("Too late", f"<p>The run does not wait any more: it is {error.status}.</p>")
    return problem(str(error))


def problem(detail: str) -> str:
    """Say what is wrong."""
    return _page("This is not possible", f"<p>{escape(detail[:1].upper() + detail[1:])}.</p>")


def _told(first: bytes) -> str:
    signal = orjson.loads(first)
    data = signal["data"] if isinstance(signal["data"], dict) else {}
    word = "approved" if data.get("approved") else "declined"
    by = f" by {_inert(signal['by'])}" if signal.get("by") else ""
    return f"<p>It was {word}{escape(by)} on {iso(signal['at'])}.</p>"


def parse_form(body: bytes) -> dict[str, str]:
    """Return a form's fields.

    Raises: Problem 400.
    """
    try:
        text = body.decode()
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_FIELDS_MAX))
    except ValueError as error:
        raise Problem(400, "malformed-form", "the body is no form of ours") from error


def _inert(text: str) -> str:
    """Return a text without characters that turn its direction or cannot be seen."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else " " if c.isspace() else "" for c in text
    )
