"""All of the bench, in order: what `bench/run` starts."""

from __future__ import annotations

import argparse
import shutil

from bench import overhead, recovery, report, scale


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in under two minutes")
    parser.add_argument("--peers", action="store_true", help="also the peers")
    parser.add_argument("--readme", action="store_true", help="write README's tables and chart")
    options = parser.parse_args()
    if options.quick and options.readme:
        parser.error("--readme wants real results; leave out --quick")
    # A quick look must not take the place of results that took their time.
    directory = overhead.WORK / "quick" if options.quick else overhead.RESULTS
    common = ["--quick"] if options.quick else []
    peers = ["--peers"] if options.peers else []
    delays = "2,5" if shutil.which("cc") else ""
    if not delays:
        print("no C compiler (cc): the slow disk is left out")
    slow = ["--slow-fdatasync-ms", delays]
    overhead.main([*common, *peers, *slow, "--out", str(directory / "overhead.json")])
    recovery.main([*common, *peers, "--out", str(directory / "recovery.json")])
    scale.main([*common, "--out", str(directory / "scale.json")])
    if options.readme:
        report.write_readme()


if __name__ == "__main__":
    main()
