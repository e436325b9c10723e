"""What the commands share: the options that name a server, and the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console

from durable_endpoints.cli.api import Server

F = TypeVar("F", bound=Callable[..., Any])


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
