"""What the commands share: the options that name a server, and the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from durable_endpoints.cli.api import Server

F = TypeVar("F", bound=Callable[..., Any])
_LENGTH: Final = re.compile(r"([0-9]{1,6}) ?(s|m|min|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def server_options(command: F) -> F:
    """Add the options that say which server a command talks to."""
    for option in (
        click.option(
            "--header", "-H", "headers", multiple=True, metavar="NAME:VALUE",
            help="Send this header too, such as your login.",
        ),
        click.option(
            "--prefix", default="/_durable", show_default=True,
            help="The middleware's prefix=.",
        ),
        click.option(
            "--url", "-u", default="http://127.0.0.1:8000", show_default=True,
            envvar="DURABLE_URL", show_envvar=True, help="The server's address.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def app_options(command: F) -> F:
    """Add the options that say how an app is imported."""
    for option in (
        click.option("--app-dir", default=".", help="Import the app from here.  [default: .]"),
        click.option("--factory", is_flag=True, help="APP is a function that returns the app."),
        click.option(
            "--lifespan/--no-lifespan", default=True,
            help="Whether the app's own start-up code runs before.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def store_option(command: F) -> F:
    """Add the option that names a store."""
    return click.option(
        "--store", metavar="ADDRESS", help="sqlite:///path.db, a path, or postgresql://…; it is "
        "only read, also while a server is at work on it.  [default: the app's]",
    )(command)  # fmt: skip


def seconds(text: str) -> int:
    """Return a length of time such as `30d`, `12h` or `90m`, in seconds.

    Raises: click.BadParameter.
    """
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time: write 30d, 12h or 90m")
    return int(found[1]) * _SECONDS[found[2]]


def server_of(url: str, prefix: str, headers: Sequence[str]) -> Server:
    """Return the server that the options name."""
    pairs = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon:
            raise click.BadParameter(f"{header!r} is not NAME:VALUE", param_hint="--header")
        pairs.append((name.strip(), value.strip()))
    if url.startswith(":"):
        url = f"127.0.0.1{url}"
    return Server(url if "://" in url else f"http://{url}", prefix, tuple(pairs))


def console_of(*, stderr: bool = False) -> Console:
    """Return the terminal."""
    # Where output is no terminal, ids and tables must not be cut to a made-up width of 80.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(stderr=stderr, width=wide, highlight=False)
