"""Starts a PostgreSQL server in BENCH_DIR, and then an app on uvicorn: `-m bench.launch APP PORT`.

The app finds the server's address in BENCH_POSTGRES. BENCH_PG_FIRST is a program beside the
interpreter, and its words, to be run once on a new server: `{url}` stands for the address.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import postgres


def main() -> None:
    app, port = sys.argv[1:]
    directory = Path(os.environ["BENCH_DIR"])
    fresh = not (directory / "pg").exists()
    url = postgres.start(directory)
    first = os.environ.get("BENCH_PG_FIRST", "").split()
    if fresh and first:
        program, *words = (word.format(url=url) for word in first)
        subprocess.run([str(Path(sys.executable).with_name(program)), *words], check=True)
    os.environ["BENCH_POSTGRES"] = url
    uvicorn = [
        sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", port,
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    os.execv(sys.executable, uvicorn)


if __name__ == "__main__":
    main()
