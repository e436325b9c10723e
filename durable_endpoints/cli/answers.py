"""The commands that answer waiting runs, and those for runs that gave up."""

from __future__ import annotations

import getpass
import sys
from typing import Any, Final

import click
import orjson
from rich.text import Text

from durable_endpoints.cli import render, timeline
from durable_endpoints.cli.api import Server
from durable_endpoints.cli.options import console_of, server_of, server_options

_OUTCOMES: Final = {
    "taken": "taken: the run goes on",
    "kept": "kept: nothing waits for it yet, and the next wait of this name takes it",
    "known": "known: a signal of this id was there before, nothing was sent twice",
}


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("name")
@click.argument("data", metavar="[JSON]", default="null")
@click.option("--id", "signal_id", help="Signals of one id are one signal, however often sent.")
@server_options
def signal(
    run: str, name: str, data: str, signal_id: str | None,
    url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """Send a signal to a run. RUN is an id, the end of one, or `last`; JSON may be `-`: stdin.

    \b
    durable signal last approval '{"ok": true}'
    """
    server = server_of(url, prefix, headers)
    value = _json(sys.stdin.read() if data == "-" else data)
    outcome = server.signal(server.resolve(run), name, value, signal_id)
    click.echo(_OUTCOMES.get(outcome, outcome))


@click.command()
@click.argument("run", metavar="RUN")
@server_options
def retry(run: str, url: str, prefix: str, headers: tuple[str, ...]) -> None:
    """Have a dead or diverged run go on, from where it stopped. See also: durable dead."""
    server = server_of(url, prefix, headers)
    _retry(server, server.resolve(run))


# --- dead letters


class _Listing(click.Group):
    """A group whose `list` is meant when nothing else is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *self.get_help_option_names(ctx)}
        return super().parse_args(ctx, args if args and args[0] in known else ["list", *args])


@click.group(cls=_Listing)
def dead() -> None:
    """Runs that gave up: out of retries, or ending the process again and again.

    Without a command: list them.
    """


_name_option = click.option("--name", help="Only runs of this endpoint, such as 'POST /chat'.")
_all_option = click.option("--all", "every", is_flag=True, help="All dead runs (see --name).")


@dead.command("list")
@_name_option
@click.option("--limit", "-n", default=20, show_default=True, type=click.IntRange(1, 500))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@server_options
def list_dead(
    name: str | None, limit: int, as_json: bool, url: str, prefix: str, headers: tuple[str, ...]
) -> None:
    """List dead runs, newest first, with what they died of."""
    found = server_of(url, prefix, headers).runs(statuses=("dead",), name=name, limit=limit)
    if as_json:
        for one in found:
            click.echo(orjson.dumps(one))
    elif found:
        console_of().print(render.dead_table(found))
    else:
        click.echo("No dead runs.")


@dead.command("show")
@click.argument("run", metavar="RUN")
@server_options
def show_dead(run: str, url: str, prefix: str, headers: tuple[str, ...]) -> None:
    """Show a dead run, its error and its steps. RUN is an id, or the end of one."""
    server = server_of(url, prefix, headers)
    run_id = server.resolve(run)
    steps = timeline.read(server.journal(run_id))
    console_of().print(render.run_view(server.run(run_id), steps))


@dead.command("retry")
@click.argument("run", metavar="[RUN]", required=False)
@_all_option
@_name_option
@server_options
def retry_dead(
    run: str | None, every: bool, name: str | None,
    url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """Have dead runs go on from the step that failed; what is recorded stays."""
    _check_which(run, every=every, name=name)
    server = server_of(url, prefix, headers)
    if run is not None:
        _retry(server, server.resolve(run))
        return
    count = 0
    for run_id in server.retry_dead(name):
        click.echo(run_id)
        count += 1
    click.echo(f"{count} dead runs go on." if count else "No dead runs.")


@dead.command("drop")
@click.argument("run", metavar="[RUN]", required=False)
@_all_option
@_name_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask before --all.")
@server_options
def drop_dead(
    run: str | None, every: bool, name: str | None, yes: bool,
    url: str, prefix: str, headers: tuple[str, ...],
) -> None:  # fmt: skip
    """Give dead runs up for good: they are cancelled, and what they did is undone."""
    _check_which(run, every=every, name=name)
    server = server_of(url, prefix, headers)
    if run is not None:
        run_id = server.resolve(run)
        if server.run(run_id)["status"] != "dead":
            raise click.ClickException(f"Run {run_id} is not dead. See: durable cancel")
        _drop(server, run_id)
        return
    found = [str(one["id"]) for one in server.dead(name)]
    if not found:
        click.echo("No dead runs.")
        return
    if not yes:
        click.confirm(f"Cancel {len(found)} dead runs?", abort=True)
    for run_id in found:
        _drop(server, run_id)


def _check_which(run: str | None, *, every: bool, name: str | None) -> None:
    if (run is None) != every:
        raise click.UsageError("Name one RUN, or all dead runs with --all (and --name).")
    if name is not None and not every:
        raise click.UsageError("--name is for --all.")


def _retry(server: Server, run_id: str) -> None:
    server.retry(run_id)
    console_of().print(Text(f"{run_id} "), render.status(server.settled(run_id)))


def _drop(server: Server, run_id: str) -> None:
    server.cancel(run_id)
    console_of().print(Text(f"{run_id} "), render.status(server.settled(run_id)))


# --- persons


@click.group(cls=_Listing)
def approvals() -> None:
    """List what persons are asked, and decide it. Without a command: list."""


@approvals.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@server_options
def list_approvals(as_json: bool, url: str, prefix: str, headers: tuple[str, ...]) -> None:
    """List what persons are asked, the oldest question first."""
    found = server_of(url, prefix, headers).approvals()
    if as_json:
        for one in found:
            click.echo(orjson.dumps(one))
    elif found:
        console_of().print(render.approvals_table(found))
        if any(one["kind"] == "decision" for one in found):
            click.echo('A decision is a signal: durable signal RUN NAME \'{"action": "retry"}\'')
            click.echo('(or "fail", or "result" with a "result")')
    else:
        click.echo("Nobody is asked anything.")


def _decision(name: str, text: str, *, approved: bool) -> click.Command:
    @click.command(name, help=text)
    @click.argument("which", metavar="RUN|LINK")
    @click.option("--name", help="Which approval, if the run asks for several.")
    @click.option("--by", default=getpass.getuser, help="Who decides.  [default: your user name]")
    @click.option("--comment", help="What the handler is told with it.")
    @server_options
    def decide(
        which: str, name: str | None, by: str, comment: str | None,
        url: str, prefix: str, headers: tuple[str, ...],
    ) -> None:  # fmt: skip
        server = server_of(url, prefix, headers)
        link = which if "/approvals/" in which else _link(server.approvals(), which, name)
        server.decide(link, {"approved": approved, "by": by, "comment": comment})
        click.echo(f"{'Approved' if approved else 'Declined'} by {by}.")

    return decide


approvals.add_command(
    _decision(
        "approve", "Approve. RUN is the id of a run that asks, or its end; or give the link.",
        approved=True,
    )
)  # fmt: skip
approvals.add_command(
    _decision(
        "decline", "Decline. RUN is the id of a run that asks, or its end; or give the link.",
        approved=False,
    )
)  # fmt: skip


def _link(asked: list[dict[str, Any]], wanted: str, name: str | None) -> str:
    """Return the link of the one open approval that is meant."""
    found = [
        one for one in asked
        if one["kind"] == "approval" and name in (None, one["name"])
        and (one["run_id"].startswith(wanted) or one["run_id"].endswith(wanted))
    ]  # fmt: skip
    if len(found) != 1:
        many = f"{len(found)} open approvals match" if found else "No open approval matches"
        more = " Say which with --name." if found else " See them with: durable approvals"
        raise click.ClickException(f"{many} {wanted!r}.{more}")
    if "link" not in found[0]:
        raise click.ClickException(
            "The server gives you no link: only operators get it. Use the one that was sent."
        )
    return str(found[0]["link"])


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = f"{text!r} is no JSON: {error}. Text needs quotes of its own: '\"yes\"'"
        raise click.BadParameter(hint, param_hint="JSON") from error


COMMANDS: Final = (signal, retry, dead, approvals)
