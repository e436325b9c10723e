"""`python -m tests.crash --kills 300`: the random kills of a release, with a progress line."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.crash.kills import random_kills


def show(text: str) -> None:
    """Replace the progress line, or, where nobody looks, print every line."""
    print(f"\r\033[K{text}" if sys.stdout.isatty() else f"{text}\n", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--keep", type=Path, help="keep the stores and logs in this directory")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        report = asyncio.run(
            random_kills(
                options.keep or Path(place), options.seed, options.kills,
                clients=options.clients, progress=show,
            )
        )  # fmt: skip
    print(f"\n{report}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
