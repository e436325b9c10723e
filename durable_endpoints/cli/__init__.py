"""The command `durable`."""

from __future__ import annotations

import sys

_NEEDED = {"click", "rich"}


def main() -> None:
    """Run the command line. Exits with 1 and the pip line if its extra is not installed."""
    try:
        from durable_endpoints.cli.commands import cli  # its libraries are optional
    except ModuleNotFoundError as error:
        absent = (error.name or "").partition(".")[0]
        if absent not in _NEEDED:
            raise
        sys.exit(
            f"The command `durable` needs {absent}, which is not installed. Install it with\n\n"
            '    pip install "durable-endpoints[cli]"'
        )
    cli(prog_name="durable")
