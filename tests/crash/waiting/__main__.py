"""`python -m tests.crash.waiting --trials 20`: every point of waiting and failing, with a bar."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from tests.crash.waiting.trials import POINTS, in_parts, processors


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.waiting", description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of each point (default 20)")
    parser.add_argument("--parts", type=int, default=processors(), help="servers side by side")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--keep", type=Path, help="keep the stores and logs in this directory")
    options = parser.parse_args()
    print(f"seed {options.seed}, {len(POINTS)} points", flush=True)
    began = time.monotonic()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory() as place, Progress(*columns) as progress:
        task = progress.add_task("kills", total=len(POINTS) * options.trials)
        report = asyncio.run(
            in_parts(
                options.keep or Path(place), options.seed, options.trials, options.parts,
                lambda: progress.advance(task),
            )
        )  # fmt: skip
    print(f"{report}\n{time.monotonic() - began:.0f} s")
    return 1 if report.violations or report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
