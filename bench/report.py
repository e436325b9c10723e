"""Tables from the JSON results, on the screen and into README.md."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import chart
from bench.outcome import HERE, RESULTS
from bench.stats import number

README = HERE.parent / "README.md"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
Row = list[str]
_BUSY_PCT = 8.0
_SIDE_BY_SIDE = 4  # contenders; more of them get a row each instead of a column
_ON_DISK = "on disk when the answer leaves"
# Characters of a line; a narrower one would show it letter by letter, and cut the brackets off.
_ROOM_FOR_ON_DISK = 160


def _cell(spread: dict[str, float] | None, scale: float = 1.0, unit: str = "") -> str:
    if spread is None:
        return "-"
    low, mid, high = (spread[k] * scale for k in ("min", "median", "max"))
    if low == high:
        return f"{number(mid)}{unit}"
    return f"{number(mid)}{unit} ({number(low)}-{number(high)})"


def _row(result: dict[str, Any], what: str, figure: str, part: str, scale: float, unit: str) -> Row:
    cells = [
        _cell(result["summary"][key].get(figure, {}).get(part), scale, unit)
        for key in result["contenders"]
    ]
    return [what, *cells]


def overhead_rows(result: dict[str, Any]) -> list[Row]:
    """Return the rows of the overhead table, a column a contender."""
    steps, tokens = result["settings"]["steps"], result["settings"]["tokens"]
    clients, pace = result["settings"]["clients"], result["settings"]["pace_ms"]
    wanted = [
        (f"{steps} steps, 1 client: p50, µs", "p50_us", "value", 1, ""),
        ("… added to the bare app, µs", "p50_us", "added", 1, ""),
        ("… added a step, µs", "p50_us", "added", 1 / steps, ""),
        (f"{steps} steps, {clients} clients: runs/s", "many_per_s", "value", 1, ""),
        ("… of the bare app", "many_per_s", "of_bare", 100, " %"),
        ("… p99, ms", "many_p99_ms", "value", 1, ""),
        (f"{tokens} SSE tokens back to back: tokens/s", "tokens_per_s", "value", 1, ""),
        ("… of the bare app", "tokens_per_s", "of_bare", 100, " %"),
        ("… first token, ms", "first_ms", "value", 1, ""),
        (f"a token every {pace} ms: time of the bare app", "paced_total_ms", "of_bare", 1, "x"),
        ("… first token later by, ms", "paced_first_ms", "added", 1, ""),
    ]
    rows = [_row(result, *w) for w in wanted]
    for delay, slow in result.get("slow", {}).items():
        part = {**result, "summary": slow["summary"]}
        rows += [
            _row(part, f"every sync {delay} ms slower: p50, ms", "p50_us", "value", 1e-3, ""),
            _row(part, "… syncs a run", "syncs_per_run", "value", 1, ""),
            _row(part, f"… {clients} clients: runs/s", "many_per_s", "value", 1, ""),
        ]
    return [row for row in rows if set(row[1:]) != {"-"}]


def by_contender(result: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Return a table with a row a contender, for more than fit side by side.

    The columns that one compares by have least and most in brackets, the others the median only.
    """
    wanted = [
        ("1 client, p50 ms", "p50_us", "value", 1e-3, _cell),
        ("µs added a step", "p50_us", "added", 1 / result["settings"]["steps"], _median),
        ("32 clients, runs/s", "many_per_s", "value", 1, _median),
        ("of bare", "many_per_s", "of_bare", 100, _cell),
        ("SSE tokens/s", "tokens_per_s", "value", 1, _median),
        ("of bare", "tokens_per_s", "of_bare", 100, _cell),
    ]
    slow = result.get("slow", {})
    columns = ["", *(name for name, *_ in wanted)]
    columns += [f"+{delay} ms a sync: p50 ms" for delay in slow] + [_ON_DISK]
    rows = []
    for key, contender in result["contenders"].items():
        figures = [
            cell(
                result["summary"].get(key, {}).get(figure, {}).get(part), scale,
                " %" if part == "of_bare" else "",
            )
            for _, figure, part, scale, cell in wanted
        ]  # fmt: skip
        figures += [
            _cell(s["summary"].get(key, {}).get("p50_us", {}).get("value"), 1e-3)
            for s in slow.values()
        ]
        rows.append([contender["title"], *figures, contender["on_disk"]])
    return columns, rows


def _median(spread: dict[str, float] | None, scale: float = 1.0, unit: str = "") -> str:
    return "-" if spread is None else number(spread["median"] * scale) + unit


def recovery_rows(result: dict[str, Any]) -> list[Row]:
    """Return the rows of the recovery table."""

    def row(what: str, figure: str) -> Row:
        return [what, *(_cell(result["summary"][k].get(figure)) for k in result["contenders"])]

    calm = [number(result["no_kill"][k]["complete_s"]) for k in result["contenders"]]
    return [
        ["no kill (once): all answered after, s", *calm],
        row("kill -9 → all answered, s", "complete_s"),
        row("kill -9 → serves again, s", "ready_s"),
        row("steps done at the kill", "steps_ended_at_kill"),
        row("… of these run again", "ended_steps_run_again"),
        row("steps lost", "steps_lost"),
        row("accepted runs lost", "runs_lost"),
    ]


def scale_rows(result: dict[str, Any]) -> list[Row]:
    """Return the rows of the scale table: a figure and its value."""
    return [[f["what"], _points(f)] for f in result["figures"]]


def instruction_rows(result: dict[str, Any]) -> list[Row]:
    """Return the rows of the counted parts."""
    return [[f["title"], number(f["instructions"])] for f in result["figures"]]


def _points(figure: dict[str, Any]) -> str:
    return " · ".join(
        f"{_at(point['at'])}: {number(point['value'])} {figure['unit']}"
        for point in figure["points"]
    )


def _at(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _columns(result: dict[str, Any]) -> list[str]:
    if result["kind"] == "scale":
        return ["", "at: figure"]
    if result["kind"] == "instructions":
        return ["once", "instructions"]
    return ["", *(c["title"] for c in result["contenders"].values())]


def table(result: dict[str, Any]) -> tuple[list[str], list[Row]]:
    """Return the column names and rows that suit a result."""
    if result["kind"] == "overhead" and len(result["contenders"]) > _SIDE_BY_SIDE:
        return by_contender(result)
    columns, rows = _columns(result), _ROWS[result["kind"]](result)
    if len(columns) - 1 > _SIDE_BY_SIDE:
        return ["", *(row[0] for row in rows)], [
            [name, *(row[n] for row in rows)] for n, name in enumerate(columns[1:], 1)
        ]
    return columns, rows


_ROWS = {
    "overhead": overhead_rows,
    "recovery": recovery_rows,
    "scale": scale_rows,
    "instructions": instruction_rows,
}


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result's table."""
    columns, rows = table(result)
    if columns[-1] == _ON_DISK and console.width < _ROOM_FOR_ON_DISK:
        columns, rows = (
            columns[:-1],
            [[name, *(cell.partition(" (")[0] for cell in cells)] for name, *cells, _ in rows],
        )
    drawn = Table(title=f"{result['kind']} at {result['machine']['commit']}")
    for n, name in enumerate(columns):
        drawn.add_column(name, justify="right" if n else "left", no_wrap=n == 0, min_width=6)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
    if busy(result):
        console.print(busy(result), style="bold red")


def markdown(result: dict[str, Any]) -> str:
    """Return a result's table in Markdown."""
    columns, rows = table(result)
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def busy(result: dict[str, Any]) -> str:
    """Return a warning if other work ran on the machine meanwhile; else nothing."""
    others = result["machine"].get("others_pct", 0.0)
    if others < _BUSY_PCT:
        return ""
    return f"Other work used {others:.0f} % of the CPU meanwhile: these figures are worth little."


def _postgres(described: dict[str, Any]) -> str:
    version = str(described.get("postgres") or "").partition(") ")[2]
    return f"PostgreSQL {version}, " if version else ""


def measured_on(result: dict[str, Any]) -> str:
    """Return one sentence on what the figures were measured on."""
    m = result["machine"]
    return (
        f"Measured {m['at'][:10]} at commit `{m['commit']}` on {m['cpus']} cores ({m['cpu']}, "
        f"Linux {m['kernel']}, {m['file_system']}, {m['fdatasync_us']:g} µs a 4 KiB fdatasync), "
        f"Python {m['python']}, SQLite {m['sqlite']}, {_postgres(m)}uvicorn "
        f"{m['versions']['uvicorn']} with uvloop, one worker. {busy(result)}".rstrip()
    )


def _slower(overhead: dict[str, Any]) -> str:
    counts = {len(slow["rounds"]) for slow in overhead["slow"].values()}
    return f", of {max(counts)} shorter ones on slower disks" if counts else ""


def _at_commit(result: dict[str, Any]) -> str:
    m = result["machine"]
    return f"at commit `{m['commit']}` ({m['fdatasync_us']:g} µs a sync)"


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found or None


def section() -> str:
    """Return what stands in the README between the markers: the tables of all stored results."""
    parts = []
    overhead, recovery = _load("overhead"), _load("recovery")
    if overhead is not None:
        settings = overhead["settings"]
        parts += [
            measured_on(overhead)
            + f" Median (least-most) of {settings['rounds']} interleaved rounds"
            f"{_slower(overhead)}; ratios and differences are to the bare app in the same round. "
            "Make them anew with `bench/run`; [how to read them](bench/README.md).",
            markdown(overhead),
        ]
        if chart.write(overhead, RESULTS / "overhead.svg"):
            parts.append("![The same as a chart](bench/results/overhead.svg)")
    if recovery is not None:
        settings = recovery["settings"]
        parts += [
            f"kill -9 half-way through {settings['jobs']} runs of {settings['steps']} steps of "
            f"{settings['step_ms']:g} ms, executions counted outside the process. Median "
            f"(least-most) of {settings['rounds']} rounds {_at_commit(recovery)}:",
            markdown(recovery),
        ]
    grown = _load("scale")
    if grown is not None:
        title = "What grows with a run, with its readers and with the store"
        parts += [f"{title}, {_at_commit(grown)}:", markdown(grown)]
    return "\n\n".join(parts)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m bench.report",
        description="Write the tables and the chart of bench/results into README.md.",
    ).parse_args()
    write_readme()


def write_readme() -> None:
    """Put the tables between the markers of README.md.

    Raises: SystemExit if the README has no such markers.
    """
    text = README.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md needs the lines {START} and {END} where the tables go")
    README.write_text(f"{before}{START}\n{section()}\n{END}{after}")


if __name__ == "__main__":
    main()
