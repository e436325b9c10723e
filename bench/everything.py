"""All of the bench, in order: what `bench/run` starts."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from bench import (
    console,
    instructions,
    llm,
    nodes,
    overhead,
    postgres,
    recovery,
    report,
    scale,
    suspended,
)
from bench.load import BadAnswer


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in some minutes")
    parser.add_argument("--postgres", action="store_true", help="also ours on PostgreSQL")
    parser.add_argument("--peers", action="store_true", help="also the peers, and --postgres")
    parser.add_argument("--readme", action="store_true", help="write README's tables and chart")
    options = parser.parse_args()
    if options.quick and options.readme:
        parser.error("--readme wants real results; leave out --quick")
    common = ["--quick"] if options.quick else []
    peers = ["--peers"] if options.peers else ["--postgres"] if options.postgres else []
    delays = "2,5" if shutil.which("cc") else ""
    if not delays:
        print("no C compiler (cc): the slow disk is left out")
    slow = ["--slow-fdatasync-ms", delays]
    parts = [(overhead, [*common, *peers, *slow]), (recovery, [*common, *peers])]
    parts += [(part, common) for part in (scale, llm, console, suspended, instructions)]
    if peers:
        try:
            postgres.programs()
        except FileNotFoundError as error:
            print(f"nodes are left out: {error}")
        else:
            parts.append((nodes, common))
    missed = []
    for part, words in parts:
        try:
            part.main(words)
        except (SystemExit, BadAnswer, OSError, RuntimeError, subprocess.SubprocessError) as said:
            missed.append(f"{part.__name__}: {said}")  # the other parts go on
    if options.readme:
        report.write_readme()
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
