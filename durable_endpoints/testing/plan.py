"""What `verify` is to do, and the command line that says it."""

from __future__ import annotations

import argparse
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from durable_endpoints.testing.reader import Request

_URL: Final = "write it as http://127.0.0.1:8000"


@dataclass(frozen=True)
class Plan:
    """What to do. Times are in seconds; `cut` is the chance of leaving after each event."""

    url: str
    opening: Request
    prefix: str = "/_durable"
    runs: int = 20
    clients: int = 8  # runs at a time
    readers: int = 3  # of each run, the one that begins it included
    cut: float = 0.1
    timeout_s: float = 120.0
    seed: int = 0
    kill_pid_file: Path | None = None
    kill_every_s: float = 3.0
    serve: str | None = None  # the server's command line
    seconds: float | None = None  # begin runs for so long, however many these are

    @property
    def kills(self) -> bool:
        """Whether the server is to be killed meanwhile."""
        return self.serve is not None or self.kill_pid_file is not None


def asked_for(arguments: list[str] | None) -> tuple[Plan, bool]:
    """Read a command line; returns the plan, and whether to be quiet meanwhile.

    Exits with 2, and says how it is written, if it cannot be carried out.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        body = Path(given.body[1:]).read_bytes() if given.body[:1] == "@" else given.body.encode()
    except (OSError, ValueError) as error:
        parser.error(f"argument --body: {error}")
    headers: dict[str, str] = dict(given.header)
    if body[:1] in (b"{", b"["):
        headers.setdefault("content-type", "application/json")
    plan = Plan(
        given.url, Request(given.method, given.path, body, headers), given.prefix, given.runs,
        given.clients, given.readers, given.cut, given.timeout, given.seed, given.kill_pid_file,
        given.kill_every, given.serve, given.seconds,
    )  # fmt: skip
    return plan, given.quiet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m durable_endpoints.testing.verify",
        description="Judge a durable endpoint from outside. Exit code 0: no violation; 1: "
        "violations; 2: nothing could be verified.",
    )
    add = parser.add_argument
    add("url", type=_url, help="where the server is, as http://127.0.0.1:8000")
    add("--path", required=True, type=_path, help="path and query of the durable endpoint")
    add("--method", default="POST")
    add("--body", default="", help="the request's body, or @FILE")
    add("--header", action="append", default=[], type=_header, metavar="NAME:VALUE")
    add("--prefix", default="/_durable", type=_path, help="where the control routes are")
    add("--runs", type=_count, default=20)
    add("--seconds", type=_seconds, help="begin runs for so long, not so many")
    add("--clients", type=_count, default=8, help="runs at a time")
    add("--readers", type=_count, default=3, help="readers of each run")
    add("--cut", type=_chance, default=0.1, help="chance to leave after an event")
    add("--timeout", type=_seconds, default=120.0, help="seconds for one run")
    add("--seed", type=int, default=secrets.randbelow(1_000_000))
    killed = parser.add_mutually_exclusive_group()
    killed.add_argument("--serve", type=_command, metavar="COMMAND",
                        help="start the server by this, kill it, start it again")  # fmt: skip
    killed.add_argument("--kill-pid-file", type=Path, help="kill the process that it names")
    add("--kill-every", type=_seconds, default=3.0,
        help="seconds between kills; longer while no run ends")  # fmt: skip
    add("--quiet", action="store_true", help="print the findings only")
    return parser


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time above 0")
    return number


def _chance(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no header: write it as NAME:VALUE")
    return name.strip().lower(), value.strip()


def _path(text: str) -> str:
    try:
        httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no path: begin it with /")
    return text


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not words:
        raise argparse.ArgumentTypeError("say which program serves, with its options")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
        httpx.URL(text)
    except (ValueError, httpx.InvalidURL) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}: {_URL}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no server's address: {_URL}")
    return text
