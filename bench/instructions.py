"""Counts the machine instructions of the pure parts: `python -m bench.instructions --help`.

By valgrind, which runs the program on a processor made of software: other work on the machine,
its clock and its caches do not come into it, so small changes show.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Final

from rich.console import Console
from rich.progress import track

from bench import machine, outcome, report
from bench.apps.pure import PARTS
from bench.outcome import WORK

_COUNT: Final = re.compile(r"I\s+refs:\s+([\d,]+)")
_TIMES: Final = {"quick": (100, 300), "full": (2_000, 6_000)}
_VALGRIND: Final = (
    "valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
)  # fmt: skip


def counted(part: str, times: int) -> int:
    """Return how many instructions a process takes that does a part so many times.

    Raises: SystemExit with what valgrind said if it counted nothing.
    """
    done = subprocess.run(
        [*_VALGRIND, sys.executable, "-m", "bench.apps.pure", part, str(times)],
        cwd=machine.ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found = _COUNT.search(done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"valgrind counted nothing of {part}:\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def measure(few: int, many: int, console: Console) -> list[dict[str, Any]]:
    """Return the figures: what each part takes once, start-up not counted."""
    counted(next(iter(PARTS)), 0)  # writes the compiled files, which would be counted
    figures = []
    for part, (title, _) in track(PARTS.items(), "counting", console=console):
        once = (counted(part, many) - counted(part, few)) / (many - few)
        figures.append({"part": part, "title": title, "instructions": round(once)})
    return figures


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    outcome.add_options(parser, "few repeats")
    options = parser.parse_args(words)
    if shutil.which("valgrind") is None:
        print("instructions are left out: there is no valgrind; install your system's package")
        return
    console = Console()
    few, many = _TIMES["quick" if options.quick else "full"]
    result = {
        "kind": "instructions",
        "machine": machine.describe(WORK),
        "settings": {"times": [few, many]},
        "figures": measure(few, many, console),
    }
    outcome.keep(options, result)
    report.show(result, console)


if __name__ == "__main__":
    main()
