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


def keep(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write a result where it belongs: a quick look never in the place of what took its time."""
    usual = WORK / "quick" if options.quick else RESULTS
    path: Path = options.out or usual / f"{result['kind']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
