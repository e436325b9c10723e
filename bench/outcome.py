"""The outcome of a part of the bench: a JSON file, and where it belongs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORK, RESULTS = HERE / ".work", HERE / "results"


def add_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add what every part of the bench takes; `quick` says what its quick look is."""
    parser.add_argument("--quick", action="store_true", help=f"{quick}: a look, not a result")
    places = "bench/results, or bench/.work/quick if it is quick"
    parser.add_argument("--out", type=Path, help=f"JSON file to write (default: in {places})")


def at_least_once(text: str) -> int:
    """Return a count that an option names.

    Raises: argparse.ArgumentTypeError below 1.
    """
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} of them measure nothing: 1 or more")
    return count


def add_only(parser: argparse.ArgumentParser) -> None:
    """Add `--only`, for a part that compares contenders."""
    parser.add_argument("--only", default="", help="contenders, by comma: bare,durable,strict,...")


def refuse_part(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Say no where some contenders' figures would take the place of all of them."""
    if options.only and not options.quick and not options.out:
        parser.error("--only measures a part: say with --out where its result goes, or --quick")


def keep(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write a result where it belongs: a quick look never in the place of what took its time."""
    usual = WORK / "quick" if options.quick else RESULTS
    path: Path = options.out or usual / f"{result['kind']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
