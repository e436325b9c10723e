"""The commands of `durable`, as click sees them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any, Final

import click
import httpx
import orjson
from rich.live import Live
from rich.text import Text

from durable_endpoints.cli import answers, keeping, render, timeline, travel
from durable_endpoints.cli.api import Server
from durable_endpoints.cli.options import console_of, server_of, server_options
from durable_endpoints.limits import DRAIN_S

STATUSES: Final = tuple(render.COLOURS)
# With --reload a person waits, who wants to see the change and not the end of an answer.
RELOAD_DRAIN_S: Final = 0.3
WATCH_S: Final = 1.0
_MARKS: Final = {
    "ok": ("✓", "green"),
    "note": ("·", "cyan"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durable-endpoints")
def cli() -> None:
    """Durable HTTP endpoints: serve them, watch their runs, try them out.

    New here? Start with: durable demo
    """


for _command in (*answers.COMMANDS, *travel.COMMANDS, *keeping.COMMANDS):
    cli.add_command(_command)


@cli.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", "-p", default=8000, show_default=True, help="Port to listen on.")
@click.option("--reload", is_flag=True, help="Start anew when a file changes; runs go on.")
@click.option("--reload-dir", "reload_dirs", multiple=True, help="Watch this directory instead.")
@click.option("--app-dir", default=".", help="Import the app from here.  [default: .]")
@click.option("--factory", is_flag=True, help="APP is a function that returns the app.")
@click.option(
    "--drain",
    type=click.FloatRange(0, DRAIN_S),
    metavar="SECONDS",
    help="What durable runs get to finish at a stop, before they are left to the next start."
    f"  [default: {DRAIN_S:g}, with --reload {RELOAD_DRAIN_S:g}]",
)
@click.option(
    "--grace",
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="What requests that are not durable get to finish at a stop.",
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["critical", "error", "warning", "info", "debug"]),
)
@click.option("--access-log/--no-access-log", default=True)
@click.option("--root-path", default="", help="Where a proxy mounts the app.")
@click.option("--forwarded-allow-ips", help="Proxies whose X-Forwarded-* headers are believed.")
@click.option("--workers", type=int, default=1, hidden=True)
def run(workers: int, **asked: Any) -> None:  # fmt: skip
    """Serve an app with uvicorn, and drain its runs at SIGTERM.

    \b
    durable run main:app --reload
    """
    if workers != 1:
        raise click.UsageError(
            "One process owns a SQLite journal, so there is one worker. One is enough for "
            "thousands of streams; for several nodes use a PostgreSQL store."
        )
    from durable_endpoints.server import Serving, serve  # loads the engine

    drain = asked.pop("drain")
    if drain is None:
        drain = RELOAD_DRAIN_S if asked["reload"] else DRAIN_S
    serving = Serving(
        **{name: asked.pop(name) for name in ("app", "host", "port", "reload")},
        **{name: asked.pop(name) for name in ("app_dir", "factory", "log_level")},
        reload_dirs=list(asked.pop("reload_dirs")),
        drain_s=drain,
        grace_s=asked.pop("grace"),
        uvicorn=asked,
    )
    sys.exit(serve(serving))


@cli.command()
@click.option("--port", "-p", default=8765, show_default=True, help="Port of the page.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@click.option("--store", type=click.Path(dir_okay=False), help="Keep the database here.")
def demo(port: int, host: str, browser: bool, store: str | None) -> None:
    """Chat with a local model, kill its server, and read on.

    Press the page's button in the middle of a sentence: the sentence goes on, in the same tab. Set
    OPENAI_BASE_URL, OPENAI_API_KEY and MODEL to talk to another model instead.
    """
    from durable_endpoints.demo.main import run_demo  # its libraries are optional

    sys.exit(run_demo(host, port, browser=browser, store=Path(store) if store else None))


@cli.command()
@click.option(
    "--status",
    "-s",
    "statuses",
    multiple=True,
    type=click.Choice(STATUSES),
    help="Only runs with this status (may be given several times).",
)
@click.option("--name", help="Only runs of this endpoint, such as 'POST /chat'.")
@click.option(
    "--label", "-l", "labels", multiple=True, metavar="NAME:VALUE",
    help="Only runs with this label (given several times: with all of them).",
)  # fmt: skip
@click.option("--limit", "-n", default=20, show_default=True, type=click.IntRange(1, 500))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--watch", "-w", is_flag=True, help="Look again every second, until Ctrl-C.")
@server_options
def runs(
    statuses: tuple[str, ...], name: str | None, labels: tuple[str, ...], limit: int,
    as_json: bool, watch: bool, url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """List the runs of a server, newest first."""
    server = server_of(url, prefix, headers)

    def find() -> list[dict[str, Any]]:
        return server.runs(statuses=statuses, name=name, labels=labels, limit=limit)

    if watch:
        if as_json:
            raise click.UsageError("--watch draws a table: leave out --json.")
        _watch(find)
        return
    found = find()
    if as_json:
        for one in found:
            click.echo(orjson.dumps(one))
    elif found:
        console_of().print(render.runs_table(found))
    else:
        click.echo("No runs." if not (statuses or name or labels) else "No such runs.")


def _watch(find: Callable[[], list[dict[str, Any]]]) -> None:
    """Draw the table of runs again and again."""
    with suppress(KeyboardInterrupt), Live(console=console_of(), auto_refresh=False) as live:
        while True:
            live.update(render.runs_table(find()), refresh=True)
            sleep(WATCH_S)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="The run and its journal as JSON.")
@server_options
def show(run: str, as_json: bool, url: str, prefix: str, headers: tuple[str, ...]) -> None:
    """Show a run and its steps over time. RUN is an id, the end of one, or `last`."""
    server = server_of(url, prefix, headers)
    run_id = server.resolve(run)
    facts, entries, usage = server.run(run_id), server.journal(run_id), server.usage(run_id)
    if as_json:
        shown = {**facts, "usage": usage, "journal": entries}
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    else:
        console_of().print(render.run_view(facts, timeline.read(entries), usage=usage))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--after", type=click.IntRange(0), help="Leave out events up to this offset.")
@click.option("--raw", is_flag=True, help="One line an event: offset, type, data.")
@server_options
def attach(
    run: str, after: int | None, raw: bool, url: str, prefix: str, headers: tuple[str, ...]
) -> None:
    """Follow a run's response live. RUN is an id, the end of one, or `last`.

    Ctrl-C only stops watching; the run goes on.
    """
    from durable_endpoints.cli.follow import follow  # loads asyncio and the client

    server = server_of(url, prefix, headers)
    run_id = server.resolve(run)
    server.run(run_id)  # says at once, and readably, if there is no such server or run
    try:
        sys.exit(asyncio.run(follow(server, run_id, after, raw=raw)))
    except KeyboardInterrupt:
        console_of(stderr=True).print(
            f"\n[dim]Left; the run goes on: durable attach {run_id}[/dim]"
        )


@cli.command()
@click.argument("run", metavar="RUN")
@server_options
def cancel(run: str, url: str, prefix: str, headers: tuple[str, ...]) -> None:
    """Cancel a run. RUN is an id, the end of one, or `last`."""
    server = server_of(url, prefix, headers)
    run_id = server.resolve(run)
    server.cancel(run_id)
    console_of().print(Text(f"{run_id} "), render.status(server.settled(run_id)))


@cli.command()
@click.argument("store", metavar="[DATABASE]", default="durable.db")
@click.option("--url", "-u", help="Look at a running server instead.")
@click.option("--run", "run_id", help="With --url: measure this run's stream, not the newest's.")
@click.option("--prefix", default="/_durable", help="With --url: the middleware's prefix=.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE")
def doctor(
    store: str, url: str | None, run_id: str | None, prefix: str, headers: tuple[str, ...]
) -> None:
    """Check a store's database and disk, or (--url) the way to a server.

    Exits with 1 if something has to be put right.
    """
    from durable_endpoints.cli import doctor as clinic  # loads sqlite3

    if url is None:
        findings: Iterable[clinic.Finding] = clinic.examine(clinic.database_path(store))
    else:
        findings = _examine_url(server_of(url, prefix, headers), run_id)
    console, worst = console_of(), 0
    for finding in findings:
        mark, colour = _MARKS[finding.grade]
        line = Text.assemble((f" {mark} ", colour), (f"{finding.what:<13}", "bold"), finding.found)
        console.print(line, soft_wrap=True)
        if finding.advice:
            console.print(Text(f"   {'':<13}→ {finding.advice}", style="dim"), soft_wrap=True)
        worst = max(worst, finding.grade == "fail")
    sys.exit(worst)


def _examine_url(server: Server, wanted: str | None) -> Iterable[Any]:
    from durable_endpoints.cli import buffering  # loads asyncio and the client
    from durable_endpoints.cli.doctor import Finding  # loads sqlite3

    health = server.health()
    if health.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise click.ClickException(f"The server at {server.url} is stopping, or overloaded.")
    if health.status_code != httpx.codes.OK:
        raise click.ClickException(server.not_ours(health.status_code))
    yield buffering.proxies(health)
    if wanted is None:
        running = server.runs(statuses=("running",), limit=1)
        if not running:
            yield Finding(
                "note",
                "stream",
                "not measured: no run is running, and a finished one arrives at once anyway",
                "Start one, and try again while it streams.",
            )
            return
        wanted = str(running[0]["id"])
    run_id = server.resolve(wanted)
    try:
        seen = asyncio.run(buffering.watch(server, run_id))
    except httpx.TransportError as error:
        raise click.ClickException(server.unreachable(error)) from error
    kinds = ("head", "chunk", "emit", "rewind")
    made = [timeline.milliseconds(e["at"]) for e in server.journal(run_id) if e["kind"] in kinds]
    yield from buffering.judge(seen, made)
