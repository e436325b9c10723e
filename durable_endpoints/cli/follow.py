"""`durable attach`: a run's response in the terminal, as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
import httpx
import orjson

from durable_endpoints.cli import render
from durable_endpoints.cli.api import Server
from durable_endpoints.client import DurableClient, Event, Rewind, RunStream
from durable_endpoints.errors import DurableError, RunCancelled

# Where chat endpoints put a token: their own JSON, or OpenAI's chunks.
_TEXT_KEYS: Final = ("text", "token", "content", "delta")
# What a model writes must not steer the terminal.
_UNSAFE: Final = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\ufffd")


async def follow(server: Server, run_id: str, after: int | None, *, raw: bool) -> int:
    """Print a run's events until its response is complete; return the exit status.

    Survives the server: a lost connection is said on stderr, and tried again.
    """
    printer = Printer(raw=raw)
    http = httpx.AsyncClient(trust_env=server.trust_env)
    try:
        async with http:
            client = DurableClient(
                server.url, prefix=server.prefix, headers=dict(server.headers), http=http
            )
            with _outages(printer):
                async with client.resume(run_id, after or 0) as stream:
                    async for item in stream:
                        printer.item(item, stream)
        status = stream.status or "running"
        if status == "running":  # the response is complete, its background work may not be
            status = await asyncio.to_thread(server.settled, run_id)
        printer.line(f"● {status}", render.COLOURS.get(status, ""))
    except RunCancelled:
        printer.line("● cancelled", "yellow")
        return 1
    except DurableError as error:  # the run failed, the server refused, or stayed away
        printer.line(str(error), "red")
        return 1
    return 0


class Printer:
    """Writes tokens as a text, other events as lines, and remarks to stderr."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._fresh = True  # at the beginning of a line

    def item(self, item: Event | Rewind, stream: RunStream) -> None:
        """Print an event; after a rewind, print what still stands anew."""
        if self._raw:
            name = item.event if isinstance(item, Event) else "durable.rewind"
            data = item.data if isinstance(item, Event) else f'{{"to":{item.to}}}'
            click.echo(f"{item.offset}\t{name}\t{data}")
            return
        if isinstance(item, Event):
            self._event(item)
            return
        self.line(f"↶ what came after event {item.to} is taken back; this stands:", "dim")
        for event in stream.events:
            self._event(event)

    def line(self, text: str, style: str) -> None:
        """Print a remark on a line of its own, on stderr."""
        if not self._fresh:
            click.echo()
            self._fresh = True
        colour = next((word for word in style.split() if word not in ("bold", "dim")), None)
        click.secho(text, fg=colour, dim="dim" in style, bold="bold" in style, err=True)

    def _event(self, event: Event) -> None:
        text = readable(event)
        if text is not None:
            click.echo(text.translate(_UNSAFE), nl=False)
            self._fresh = text.endswith("\n") if text else self._fresh
            return
        if not self._fresh:
            click.echo()
        label = "" if event.event == "message" else click.style(f"{event.event} ", dim=True)
        click.echo(f"{label}{event.data.translate(_UNSAFE)}")
        self._fresh = True


def readable(event: Event) -> str | None:
    """The text that a token event adds; None for an event that is no token.

    Plain data of the default type is text. JSON is text if it is OpenAI's chat chunk, or an
    object whose one member is a string named text, token, content or delta.
    """
    if event.event != "message":
        return None
    if event.data.strip() == "[DONE]":
        return ""
    try:
        data: object = orjson.loads(event.data)
    except ValueError:
        return event.data
    if isinstance(data, dict):
        return _text(data)
    return data if isinstance(data, str) else event.data


def _text(data: dict[str, Any]) -> str | None:
    if str(data.get("object", "")).startswith("chat.completion"):
        choices = data.get("choices") or [{}]
        return str(choices[0].get("delta", {}).get("content") or "")
    if len(data) == 1:
        ((name, value),) = data.items()
        if name in _TEXT_KEYS and isinstance(value, str):
            return value
    return None


class _Remarks(logging.Handler):
    def __init__(self, printer: Printer) -> None:
        super().__init__(logging.INFO)
        self._printer = printer

    def emit(self, record: logging.LogRecord) -> None:
        self._printer.line(f"… {record.getMessage()}", "dim")


@contextmanager
def _outages(printer: Printer) -> Iterator[None]:
    """Show what the client logs of lost connections while a run is followed."""
    log, remarks = logging.getLogger("durable_endpoints.client"), _Remarks(printer)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(remarks)
    try:
        yield
    finally:
        log.removeHandler(remarks)
        log.setLevel(level)
