"""`durable replay` and `durable export`: stored runs against today's code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click
import orjson

from durable_endpoints.cli import render
from durable_endpoints.cli.options import app_options, store_option

_PATIENCE_S: Final = 5.0


@click.command()
@click.argument("targets", nargs=-1, metavar="[RUN] MODULE:APP")
@click.option("--check", is_flag=True, help="Replay all stored runs: a gate before a deploy.")
@click.option(
    "--status", "-s", "statuses", multiple=True, type=click.Choice(tuple(render.COLOURS)),
    help="With --check: only runs with this status (may be given several times).",
)  # fmt: skip
@click.option("--name", help="With --check: only runs of this endpoint, such as 'POST /chat'.")
@click.option("--limit", "-n", type=click.IntRange(1), help="With --check: the newest so many.")
@click.option(
    "--patience", default=_PATIENCE_S, show_default=True, type=click.FloatRange(0.1),
    metavar="SECONDS", help="How long a replay may stand still.",
)  # fmt: skip
@store_option
@app_options
def replay(
    targets: tuple[str, ...], check: bool, statuses: tuple[Any, ...], name: str | None,
    limit: int | None, patience: float, store: str | None,
    app_dir: str, factory: bool, lifespan: bool,
) -> None:  # fmt: skip
    """Replay stored runs against today's code, in this process, offline.

    Recorded steps return what they returned; no step, effect or wait begins. Breakpoints work.
    RUN is an id, the end of one, or `last`. Exits with 1 where the code drifts.

    \b
    durable replay last main:app
    durable replay --check main:app
    """
    if len(targets) != (1 if check else 2):
        raise click.UsageError("Give RUN and MODULE:APP, or --check and MODULE:APP.")
    if not check and (statuses or name or limit):
        raise click.UsageError("--status, --name and --limit are for --check.")
    from durable_endpoints.cli import gate, opening  # load the engine

    app = opening.import_app(targets[-1], app_dir, factory=factory)
    address = store or opening.store_of(app)
    with gate.explained():
        replayer = gate.Replayer(app, lifespan=lifespan, patience=patience)
        if check:
            work = gate.check(replayer, address, gate.Query(statuses, name), limit)
        else:
            work = gate.replay_one(replayer, address, targets[0])
        sys.exit(opening.wait_for(work))


# --- export


@click.command("export")
@click.argument("run", metavar="RUN")
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option(
    "--pytest", "file", type=click.Path(dir_okay=False, path_type=Path),
    help="Write a test that replays the run against the app.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@store_option
@app_options
def export_run(
    run: str, app: str | None, file: Path | None, force: bool, store: str | None,
    app_dir: str, factory: bool, lifespan: bool,
) -> None:  # fmt: skip
    """Write a run's journal as JSON, or as a regression test. RUN as for replay.

    The journal holds what users sent and were answered: look at it before you share it.

    \b
    durable export last main:app --pytest tests/test_refund.py
    """
    if file is not None and app is None:
        raise click.UsageError("--pytest needs MODULE:APP: what the test replays the run against.")
    if file is not None and file.exists() and not force:
        raise click.ClickException(f"{file} is there already: --force overwrites it.")
    from durable_endpoints.cli import gate, opening  # load the engine

    address = store or opening.DEFAULT
    if store is None and app is not None:
        address = opening.store_of(opening.import_app(app, app_dir, factory=factory))
    with gate.explained():
        record, journal = opening.wait_for(gate.read(address, run))
    if file is None or app is None:
        click.echo(orjson.dumps(journal, option=orjson.OPT_INDENT_2))
        return
    from durable_endpoints.testing.writing import test_of

    text = test_of(record, journal, app, factory=factory, lifespan=lifespan)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    click.echo(f"Wrote {file}: run it with pytest {file}")


COMMANDS: Final = (replay, export_run)
